"""Labels that follow from what the oracle measured: sufficient, earliest, route.

A state is sufficient if the lens says what the teacher will say: the same token, its whole distribution within `kappa`
nats, and its first choice ahead of its second by `mu`. The two are chosen once, on the tune split, and then frozen.
"""

from typing import NamedTuple

import numpy as np

ROUTES = ("accept_local", "continue_local", "revive_local", "escalate")
ACCEPT, CONTINUE, REVIVE, ESCALATE = range(4)
UNSURE = 0.1  # the share of agreeing states whose margin is too small to rely on
WANTED = 0.5  # of the states at the middle tap
LOCAL = 0.7  # of the blocks: the local budget


class Limits(NamedTuple):
    kappa: float
    mu: float
    share: float  # sufficient at the middle tap of the tune split


class Seen(NamedTuple):
    """What the oracle says of each state, N T."""

    agrees: np.ndarray
    divergence: np.ndarray
    margin: np.ndarray


def limits(tune: Seen) -> Limits:
    """So that half of the states at the middle tap are sufficient, or as many as the lens agrees on."""
    middle = tune.agrees.shape[1] // 2
    agreeing = tune.margin[tune.agrees]
    mu = float(np.quantile(agreeing, UNSURE)) if len(agreeing) else 0.0
    clear = (tune.agrees & (tune.margin >= mu))[:, middle]
    found = np.sort(tune.divergence[clear, middle])
    count = min(len(found), round(WANTED * len(clear)))
    kappa = float(found[count - 1]) if count else 0.0
    return Limits(kappa, mu, count / max(1, len(clear)))


def sufficient(seen: Seen, limit: Limits) -> np.ndarray:
    """N T."""
    return seen.agrees & (seen.divergence <= limit.kappa) & (seen.margin >= limit.mu)


def earliest(enough: np.ndarray) -> np.ndarray:
    """N: the first tap from which all later ones are sufficient; one past the last where it is not."""
    from_here = np.logical_and.accumulate(enough[:, ::-1], axis=1)[:, ::-1]
    return enough.shape[1] - from_here.sum(1)


def budget(taps: list[int], blocks: int) -> int:
    """The tap, counted from 0, that is nearest to the local share of the blocks."""
    return int(np.argmin([abs(tap + 1 - LOCAL * blocks) for tap in taps]))


def routes(enough: np.ndarray, within: int, mended: np.ndarray | None = None) -> np.ndarray:
    """N T: what is best done at each tap, where `within` is the last tap of the local budget.

    `mended`, N T, says where the depth module's state is sufficient; leaving with that costs less than going on. Before
    there is a module, what it would mend is `continue_local` or `escalate`.
    """
    good = enough if mended is None else enough | mended
    later = np.zeros_like(enough)
    for tap in range(within):
        later[:, tap] = good[:, tap + 1 : within + 1].any(1)
    rest = np.where(later, CONTINUE, ESCALATE)
    return np.where(enough, ACCEPT, np.where(good, REVIVE, rest))
