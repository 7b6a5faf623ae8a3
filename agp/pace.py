"""Whether drafts are worth their while, on this machine, of this text: both ways are tried, and the faster one kept.

It decides about time alone: what is said is the same either way. A step with drafts gains the steps that its tokens
would have taken without, less what it took itself. Some texts repeat themselves and some never do: that shows soon.
"""

TRIED = 3  # steps with drafts, and then of those without, before they are compared
AGAIN = 256  # steps with drafts, after which those without are timed again
MACHINE, TEXT = 0.05, 0.3  # what the newest step counts in what is known of all texts, and of one
PLAIN = 0.2  # and in the time of a step without drafts
WORST = -2.0  # steps that one may lose, whatever else the machine did
SHORTEST, LONGEST = 2, 32  # steps without drafts until they are tried again: twice as many each time they gain nothing


class Pace:
    """What is known of the machine, whatever the text."""

    def __init__(self) -> None:
        self.plain: float | None = None  # seconds of a step without drafts
        self.gain: dict[bool, float | None] = {True: None, False: None}  # of a step with drafts, in steps without
        self.wanted = TRIED + 1  # steps without drafts still to be timed; the first compiles
        self.drafted = 0  # steps with drafts

    def text(self, drawn: bool = False) -> "Text":
        """Of replies that begin now. Tokens that are `drawn` are foreseen more seldom: they are known apart."""
        return Text(self, drawn)

    @property
    def drafts(self) -> bool | None:
        """Which way has to be known better; None: neither."""
        return True if self.drafted < TRIED else False if self.wanted else None

    def alone(self, seconds: float) -> None:
        """A step without drafts took so long."""
        if self.wanted <= TRIED:
            self.plain = mixed(self.plain, seconds, PLAIN)
        self.wanted = max(0, self.wanted - 1)

    def beside(self, seconds: float, tokens: float, drawn: bool) -> float | None:
        """What a step with drafts gained, where that can be said."""
        self.drafted += 1
        if self.drafted % AGAIN == 0:
            self.wanted = TRIED
        if self.plain is None:
            return None
        gain = max(tokens - seconds / self.plain, WORST)
        self.gain[drawn] = mixed(self.gain[drawn], gain, MACHINE)
        return gain


class Text:
    def __init__(self, pace: Pace, drawn: bool) -> None:
        self.pace, self.drawn, self.gain = pace, drawn, pace.gain[drawn]
        lost = self.gain is not None and self.gain < 0
        self.left, self.wait = (2 * SHORTEST, 4 * SHORTEST) if lost else (0, SHORTEST)  # steps without drafts, and next
        self._drafted = True

    def drafts(self) -> bool:
        """Whether the next step should draft."""
        return self.left == 0 if self.pace.drafts is None else self.pace.drafts

    def took(self, drafted: bool, seconds: float, tokens: float) -> None:
        """`tokens` are those of each row. The first step without drafts begins the next one too, and says nothing."""
        before, self._drafted = self._drafted, drafted
        if not drafted:
            self.left = max(0, self.left - 1)
            if not before:
                self.pace.alone(seconds)
            return
        gain = self.pace.beside(seconds, tokens, self.drawn)
        if gain is not None:
            self.gain = mixed(self.gain, gain, TEXT)
            lost = self.gain < 0
            self.left, self.wait = (self.wait, min(2 * self.wait, LONGEST)) if lost else (0, SHORTEST)


def mixed(known: float | None, new: float, share: float) -> float:
    return new if known is None else known + share * (new - known)
