"""What the decoders share: where tokens stand, attention with given or own keys and values, gated MLP, safe roots."""

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from agp.cache import KV, LayerCache
from agp.exponentials import by_numpy, tanh
from agp.fused import CPU, FEW, Angles, RMSNorm, Rope, Start, rms_norm
from agp.products import Linear


class Place:
    """Where a chunk of tokens stands: it ends at `end` (padding included); `pad` tokens on the left are not text.

    `documents` numbers the tokens of packed rows, B L. Only distances matter to a rotation, so positions need no care,
    unless rows do not stand in step: then `where` says of every place so far, B S, which token of its row is there;
    below zero, none.
    """

    def __init__(
        self, end: int, pad: mx.array | None, documents: mx.array | None = None, where: mx.array | None = None
    ):
        self.end, self.pad, self.documents, self.where = end, pad, documents, where
        self.angles: dict[tuple[str, int], Angles] = {}  # of each rope, for a number of tokens
        self._masks: dict[tuple[int, int, int | None], mx.array | str | None] = {}

    def start_of(self, length: int) -> Start:
        """Position of the first of the last `length` tokens. Padding counts: only distances matter to a rotation."""
        return self.end - length if self.where is None else self.where[:, -length:]

    def mask(self, queries: int, keys: int, window: int | None) -> mx.array | str | None:
        """For the last `queries` tokens over the last `keys`; made once for all blocks that ask alike."""
        ask = (queries, keys, window if window is not None and keys > window else None)
        if ask not in self._masks:
            self._masks[ask] = self._make(*ask)
        return self._masks[ask]

    def _make(self, queries: int, keys: int, window: int | None) -> mx.array | str | None:
        if self.where is not None:
            return self._scattered(self.where, queries, keys, window)
        if (
            self.pad is None
            and self.documents is None
            and window is None
            and (queries == 1 or not CPU or queries > FEW)
        ):
            return None if queries == 1 else "causal"
        q = mx.arange(keys - queries, keys)[:, None]
        k = mx.arange(keys)
        mask = k <= q
        if window is not None:
            mask = mask & (k > q - window)
        if self.documents is not None:
            mine, others = self.documents[:, -queries:, None], self.documents[:, None, -keys:]
            return (mask & (mine == others))[:, None]
        if self.pad is None:
            return mask
        text = k >= (self.pad - (self.end - keys))[:, None, None]
        return ((mask & text) | (k == q))[:, None]  # padding attends to itself: an empty row is NaN on some devices

    def _scattered(self, where: mx.array, queries: int, keys: int, window: int | None) -> mx.array:
        q, k = where[:, -queries:, None], where[:, None, -keys:]
        mask = (k >= 0) & (k <= q)
        if window is not None:
            mask = mask & (k > q - window)
        itself = mx.arange(keys - queries, keys)[:, None] == mx.arange(keys)
        return (mask | itself)[:, None]


def tail(x: Any, last: int | None) -> Any:
    """The last positions, all where `last` is None; nothing stays nothing."""
    return x if last is None or x is None else x[:, max(x.shape[1] - last, 0) :]


class Attention(nn.Module):
    """Grouped-query attention with normed queries, keys and values and no scale. One that borrows has no k or v."""

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
        rope: dict,
        window: int | None,
        owns: bool,
        value_is_key: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        self.window, self.head_dim, self.eps = window, head_dim, eps
        self.owns, self.value_is_key = owns, value_is_key
        self.q_proj = Linear(dim, heads * head_dim, bias=bias)
        self.o_proj = Linear(heads * head_dim, dim, bias=bias)
        self.q_norm = RMSNorm(head_dim, eps=eps)
        if owns:
            self.k_proj = Linear(dim, kv_heads * head_dim, bias=bias)
            if not value_is_key:
                self.v_proj = Linear(dim, kv_heads * head_dim, bias=bias)
            self.k_norm = RMSNorm(head_dim, eps=eps)
        self.rope = Rope(head_dim, rope)

    def __call__(
        self, x: mx.array, place: Place, borrowed: KV | None, cache: LayerCache | None, last: int | None
    ) -> tuple[mx.array, KV]:
        """Attend from the last positions of `x`; returns what was attended to as well, for others to borrow."""
        kv = self.make(x, place, cache) if self.owns else borrowed
        assert kv is not None, "a borrower was called without keys and values"
        x = tail(x, last)
        length = x.shape[1]
        queries = self._turn(self.q_norm(self._heads(self.q_proj(x))), place)
        mask = place.mask(length, kv.keys.shape[2], self.window)
        out = mx.fast.scaled_dot_product_attention(queries, kv.keys, kv.values, scale=1.0, mask=mask)
        return self.o_proj(out.swapaxes(1, 2).reshape(*x.shape[:2], -1)), kv

    def make(self, x: mx.array, place: Place, cache: LayerCache | None) -> KV:
        keys = self._heads(self.k_proj(x))
        values = keys if self.value_is_key else self._heads(self.v_proj(x))
        keys = self._turn(self.k_norm(keys), place)
        values = rms_norm(values, None, self.eps).swapaxes(1, 2)
        return KV(keys, values) if cache is None else cache.extend(keys, values)

    def _turn(self, x: mx.array, place: Place) -> mx.array:
        """Positions into queries or keys: B L H K in, B H L K out."""
        return self.rope(x.swapaxes(1, 2), place.start_of(x.shape[1]), place.angles)

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], -1, self.head_dim)


def gelu_times(gate: mx.array, x: mx.array) -> mx.array:
    """The tanh form of GELU, gated; inside it, float32."""
    return gated(gate, x, tanh(bent(gate))) if by_numpy(gate) else gelu_times_at_once(gate, x)


@partial(mx.compile, shapeless=True)
def gelu_times_at_once(gate: mx.array, x: mx.array) -> mx.array:
    return gated(gate, x, mx.tanh(bent(gate)))


@partial(mx.compile, shapeless=True)
def bent(gate: mx.array) -> mx.array:
    """The cube is spelled out: a power costs as much as the tanh."""
    g = gate.astype(mx.float32)
    return 0.7978845608028654 * (g + 0.044715 * (g * g * g))


@partial(mx.compile, shapeless=True)
def gated(gate: mx.array, x: mx.array, told: mx.array) -> mx.array:
    return (0.5 * gate.astype(mx.float32) * (1 + told)).astype(gate.dtype) * x


def soft_cap(x: mx.array, cap: mx.array) -> mx.array:
    if by_numpy(x):
        return (tanh(x.astype(mx.float32) / cap) * cap).astype(x.dtype)
    return soft_cap_at_once(x, cap)


@partial(mx.compile, shapeless=True)
def soft_cap_at_once(x: mx.array, cap: mx.array) -> mx.array:
    return (mx.tanh(x.astype(mx.float32) / cap) * cap).astype(x.dtype)


def root(x: mx.array) -> mx.array:
    """Square root whose gradient at zero is zero: a padding row embeds as all zeros, and 0 * inf would be NaN."""
    positive = x > 0
    return mx.where(positive, mx.sqrt(mx.where(positive, x, 1)), 0)
