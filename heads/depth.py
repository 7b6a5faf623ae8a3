"""The depth module: taps seen so far, mixed into a state that stands for the full-depth one.

Gemma 3n's streams are brought together at the last tap, as the final norm takes them; of taps before, the first one is
read, which costs nothing. How much each depth counts depends on the state. What the mix lacks is fetched as the skipped
blocks would: by attention to the keys and values that the model's last producers made, full and sliding side by side,
and a small gated MLP. It begins with the attention of blocks that it spares, and never touches what later tokens see.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from agp.adapters import Adapted, dense
from agp.cache import KV
from agp.fused import RMSNorm, rms_norm
from agp.layers import Attention, Place, gelu_times
from agp.losses import Sums
from agp.macs import joining
from agp.models.decoder import Decoder
from agp.products import Linear
from heads.vocabulary import logits

SHARE = 0.3  # of what the cloned attention adds: two of them speak at once, and sooner than they learned to


@dataclass(frozen=True, kw_only=True)
class Config:
    taps: int  # how many it reads: the one it stands at, and all before
    blocks: tuple[int, ...]  # those whose attention it begins with, one a kind
    width: int


class Mended(NamedTuple):
    state: mx.array  # B n D, for the final norm; its size means nothing
    weights: mx.array  # B n T: how much each tap counted


class Head(nn.Module):
    def __init__(self, config: Config, decoder: Decoder):
        super().__init__()
        self.taps, self.eps = config.taps, decoder.config.rms_norm_eps
        self._together, self._joining = decoder.together, joining(decoder)
        dim = decoder.config.hidden_size
        self.asked = mx.zeros((config.taps, dim))  # by which a tap is found useful
        self.bias = mx.array([0.0] * (config.taps - 1) + [2.0])
        self.scale = mx.ones((config.taps, 1))
        self.before_attention, self.before_mlp = mx.ones(dim), mx.ones(dim)
        kinds, layers = decoder.config.layer_types, decoder.layers
        self.attention = {kinds[block]: spared(layers[block].self_attn) for block in config.blocks}
        self.gate, self.up = (Linear(dim, config.width, bias=False) for _ in range(2))
        self.down = Linear(config.width, dim, bias=False)
        self.down.weight = mx.zeros_like(self.down.weight)

    @property
    def macs(self) -> int:
        """Of one token, beside no context."""
        attention = sum(a.q_proj.weight.size + a.o_proj.weight.size for a in self.attention.values())
        return self._joining + self.asked.size + attention + 3 * self.gate.weight.size

    def __call__(self, states: mx.array, place: Place, shared: Mapping[str, KV]) -> Mended:
        """`states` are T B n D (Gemma 3n: T B n 4 D), the last positions before the end of `place`."""
        first = states[:-1] if states.ndim == 4 else states[:-1, :, :, 0]
        sources = mx.moveaxis(mx.concatenate([first, self._together(states[-1])[None]]), 0, 2)
        sources = rms_norm(sources, None, self.eps)  # B n T D
        said = (sources * self.asked).sum(-1) + self.bias
        weights = mx.softmax(said, axis=-1)
        x = rms_norm((weights[..., None] * self.scale * sources).sum(-2), None, self.eps)
        asks = x * self.before_attention
        for kind, attention in self.attention.items():
            x = x + attention(asks, place, shared[kind], None, None)[0]
        y = rms_norm(x, self.before_mlp, self.eps)
        x = x + self.down(gelu_times(self.gate(y), self.up(y)))
        return Mended(x, weights)


def spared(theirs: Attention) -> Attention:
    """Its queries and its way out, in full precision and with what an adapter adds, to be trained apart."""
    own = copy(theirs)
    own.q_norm = RMSNorm(theirs.head_dim, eps=theirs.eps)  # a copy would share with theirs what is frozen in it
    own.q_norm.weight = theirs.q_norm.weight
    own.q_proj, own.o_proj = linear(theirs.q_proj), linear(theirs.o_proj, SHARE)
    return own


def linear(theirs: Any, share: float = 1.0) -> Linear:
    weight = theirs.weight() if isinstance(theirs, Adapted) else dense(theirs)
    own = Linear(weight.shape[1], weight.shape[0], bias=False)
    own.weight = share * weight
    return own


def loss(
    head: Head,
    decoder: Decoder,
    states: mx.array,
    place: Place,
    shared: Mapping[str, KV],
    rows: mx.array,
    taught: mx.array,
    chosen: mx.array,
) -> Sums:
    """Cross entropy with the teacher at the positions `chosen`, B n, among tokens whose `rows` of the head these are.

    `taught` are the teacher's shares of these, B n V.
    """
    mended = decoder.norm(head(states, place, shared).state)
    said = logits(mended, rows, decoder.config.final_logit_softcapping)
    missed = taught.sum(-1) * mx.logsumexp(said, axis=-1) - (taught * said).sum(-1)
    return (missed * chosen).sum(), chosen.sum()
