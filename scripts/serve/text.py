"""What tokens say, as soon as it is sure: `Tokenizer.stream` and `agp.generate.until`, but handed one at a time."""

from collections import deque
from collections.abc import Sequence

from agp.generate import beginning
from agp.text import Tokenizer


class Text:
    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
        self.stops, self.held, self.stopped = stops, "", False
        self.ids: deque[int | None] = deque()
        self.pieces = tokenizer.stream(iter(self.ids.popleft, None))

    def push(self, id: int) -> str:
        """What this token makes sure of."""
        self.ids.append(id)
        return self.cut(next(self.pieces))

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        if self.stopped:
            return ""
        self.ids.append(None)
        ready = self.cut(next(self.pieces, ""))
        ready, self.held = ready + self.held, ""
        return ready

    def cut(self, piece: str) -> str:
        held = self.held + piece
        ends = [(at + len(stop), at) for stop in self.stops if (at := held.find(stop)) >= 0]
        if ends:
            self.stopped, self.held = True, ""
            return held[: min(ends)[1]]
        safe = len(held) - beginning(held, self.stops)
        self.held = held[safe:]
        return held[:safe]
