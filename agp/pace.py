"""Whether drafts are worth their while, on this machine, of this text: both ways are tried, and the faster one kept.

It decides about time alone: what is said is the same either way.
"""

FIRST = 4  # steps of each way before they are compared
AGAIN = 64  # steps until the other way is tried again
TRIED = 3  # steps of that
NEWEST = 0.2  # what the newest step counts


class Pace:
    def __init__(self) -> None:
        self._spent: dict[bool, float] = {}  # seconds a token with drafts, and without
        self._last: bool | None = None
        self._steps = 0

    def drafts(self) -> bool:
        """Whether the next step should draft."""
        if self._steps < 2 * FIRST:
            return self._steps < FIRST
        if len(self._spent) < 2:
            return not self._spent.get(True)
        faster = self._spent[True] <= self._spent[False]
        return faster if self._steps % AGAIN >= TRIED else not faster

    def took(self, drafted: bool, seconds: float, tokens: int) -> None:
        """The first step after another way begins what the next one has already, or compiles, and says nothing."""
        self._steps += 1
        self._last, before = drafted, self._last
        if drafted != before:
            return
        now, before = seconds / tokens, self._spent.get(drafted)
        self._spent[drafted] = now if before is None else before + NEWEST * (now - before)
