"""Keys and values of the tokens seen so far: one growing buffer a producing layer, full or sliding.

Both kinds keep tokens in order of position, so a mask needs no bookkeeping. A sliding buffer has room for more than its
window; when that is used up the window is moved to the front once, and the copy is paid for over `STEP` tokens.
"""

from typing import NamedTuple

import mlx.core as mx

STEP = 256  # tokens by which a buffer grows, and a sliding one may run ahead of its window


class KV(NamedTuple):
    keys: mx.array  # B H S K
    values: mx.array  # B H S K


class LayerCache:
    def __init__(self, window: int | None = None, slack: int = 0):
        self.window = window
        self.kept = None if window is None else window + slack  # the newest, this one included
        self.offset = 0  # tokens seen
        self._start = self._end = 0  # the part of the buffer that the newest tokens may attend to
        self._buffer: KV | None = None

    def extend(self, keys: mx.array, values: mx.array) -> KV:
        """Append, and return all that the new tokens may attend to: at most `kept` - 1 tokens before the first."""
        new = keys.shape[2]
        if self.kept is not None:
            self._start = max(self._start, self._end - self.kept + 1)
        if self.kept is not None and new > STEP:
            return self._replace(keys, values)
        self._make_room(keys, values, new)
        buffer = self._buffer
        buffer.keys[:, :, self._end : self._end + new] = keys
        buffer.values[:, :, self._end : self._end + new] = values
        self._end += new
        self.offset += new
        return self.held()

    def held(self) -> KV:
        if self._buffer is None:
            raise ValueError("the cache is empty; run the prompt through the model first")
        return KV(*(a[:, :, self._start : self._end] for a in self._buffer))

    def can_trim(self, count: int) -> bool:
        """A sliding cache can go back only while its window stays whole."""
        left = self.offset - count
        needed = 0 if self.window is None else max(0, left - self.window + 1)
        return left == 0 or (left > 0 and self.offset - self._end <= needed)

    def trim(self, count: int) -> None:
        if not self.can_trim(count):
            raise ValueError(f"cannot forget {count} of {self.offset} tokens: the buffer holds {self._end} of them")
        if count == self.offset:
            self.offset = self._start = self._end = 0
            return
        self._end, self.offset = self._end - count, self.offset - count
        first = 0 if self.kept is None else max(0, self.offset - self.kept + 1)
        self._start = max(0, first - (self.offset - self._end))

    def _replace(self, keys: mx.array, values: mx.array) -> KV:
        """A chunk longer than the room: attend over all of it, keep no more than the window."""
        seen = KV(keys, values)
        if self._buffer is not None:
            seen = KV(*(mx.concatenate([a, b], axis=2) for a, b in zip(self.held(), seen, strict=True)))
        self.offset += keys.shape[2]
        self._start, self._end = 0, min(seen.keys.shape[2], self.kept - 1)
        self._buffer = KV(*(a[:, :, a.shape[2] - self._end :] for a in seen))
        return seen

    def _make_room(self, keys: mx.array, values: mx.array, new: int) -> None:
        if self._buffer is not None and self._end + new <= self._buffer.keys.shape[2]:
            return
        kept = self._end - self._start
        size = -(-(kept + new) // STEP) * STEP
        fresh = KV(*(mx.zeros((*a.shape[:2], size, a.shape[3]), a.dtype) for a in (keys, values)))
        if self._buffer is not None:
            for to, have in zip(fresh, self.held(), strict=True):
                to[:, :, :kept] = have
        self._buffer, self._start, self._end = fresh, 0, kept

    def put(self, held: KV, offset: int) -> None:
        """Instead of all that was there: the newest of `offset` tokens."""
        self._buffer, self._start, self._end, self.offset = held, 0, held.keys.shape[2], offset

    @property
    def arrays(self) -> list[mx.array]:
        return list(self._buffer or ())

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays)


class Cache:
    """All layers of one model; `owner` ties it to that model, so that another model's cache is refused."""

    def __init__(self, windows: list[int | None], owner: object, slack: int = 0):
        self.layers = [LayerCache(window, slack) for window in windows]
        self.owner, self.slack = owner, slack
        self.pad: mx.array | None = None  # B: how many tokens on the left of each row are padding

    @property
    def position(self) -> int:
        return self.layers[0].offset

    @property
    def rows(self) -> int | None:
        return self.arrays[0].shape[0] if self.position else None

    def trim(self, count: int) -> None:
        """Forget the newest `count` tokens, in all layers or, where one cannot go back so far, in none."""
        if type(count) is not int or not 0 <= count <= self.position:
            raise ValueError(f"cannot forget {count!r} tokens; the cache holds {self.position}")
        if stuck := [i for i, layer in enumerate(self.layers) if not layer.can_trim(count)]:
            raise ValueError(f"cannot forget {count} tokens: the windows of blocks {stuck} have moved on")
        for layer in self.layers:
            layer.trim(count)
        if not self.position:
            self.pad = None

    @property
    def arrays(self) -> list[mx.array]:
        return [a for layer in self.layers for a in layer.arrays]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)
