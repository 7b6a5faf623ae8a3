"""Is a promise still kept? Some tokens, drawn beforehand, run to full depth whatever the router says, and are compared.

The more they differ the more a bet against the promise wins. While it is kept, a capital of `ODDS` is seen at any time
with a chance of at most one in `ODDS` (Ville), so to look after every token costs nothing.
"""

import numpy as np

ODDS = 100.0
WORSE = (1.5, 2.0, 4.0, 10.0)  # times the promised risk: each is a bet, all of the same first stake


class Audit:
    def __init__(self, risk: float, rate: float = 0.05, seed: int = 0):
        """`risk` is the share of tokens that may leave early and differ, `rate` that of tokens looked at."""
        if not 0 < risk < 1 or not 0 <= rate <= 1:
            raise ValueError(f"risk is {risk} and rate {rate}; a share between 0 and 1 is needed")
        self.risk, self.rate = risk, rate
        worse = np.array([min(factor * risk, (1 + risk) / 2) for factor in WORSE])
        self._lost, self._kept = np.log(worse / risk), np.log((1 - worse) / (1 - risk))
        self._capital = np.zeros(len(WORSE))  # logs
        self._rng = np.random.default_rng([seed, 2])
        self.looked = self.differed = 0

    def drawn(self, rows: int) -> np.ndarray:
        """Which of the next tokens, one a row, are run to full depth."""
        return self._rng.random(rows) < self.rate

    def told(self, differs: bool) -> None:
        """Of one that was drawn: whether it would have left early, and as another token."""
        self.looked += 1
        self.differed += differs
        self._capital += self._lost if differs else self._kept

    @property
    def broken(self) -> bool:
        return bool(np.exp(self._capital).mean() >= ODDS)
