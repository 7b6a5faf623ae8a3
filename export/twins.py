"""All heads once more, in PyTorch: another library's arithmetic and gradients, of weights under the same names.

A twin is made of a head and takes its weights strictly; they go back as strictly. `Spoken` asks a twin in MLX.
"""

import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx.utils import tree_flatten
from torch import Tensor, nn
from torch.nn import functional as F

from export.program import senders
from heads import depth, glimpse, karhunen, semantic, trajectory, transfer
from heads.bundle import Bundle


class Held(nn.Module):
    """With weights; what is not filled says so in all that it touches."""

    def held(self, **shapes: tuple[int, ...]) -> None:
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.full(shape, math.nan)))

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


class Trajectory(Held):
    def __init__(self, head: trajectory.Head):
        super().__init__()
        of = head.config
        self.early = of.hidden + 2  # features that are known before a state is read
        said, facts = self.early + of.facts + of.dim, of.facts + 1
        self.held(now=(of.taps, of.width, of.hidden), before=(of.window - 1, of.width, of.hidden))
        self.held(bias=(of.taps, of.hidden), middle=(of.taps, of.hidden, of.hidden))
        self.held(size=(of.taps, facts), zero=(of.taps, facts), first=(of.taps, self.early))
        self.held(last=(of.taps, said, len(trajectory.ROUTES) + 3 + of.taps))

    def forward(self, seen: Any) -> trajectory.Told:  # of tensors
        now, before = (unit(x, trajectory.UNIT) for x in (seen.now, seen.before))
        own = torch.einsum("ntw,twe->nte", now, self.now).cumsum(1)
        x = own + torch.einsum("npw,pwe->ne", before, self.before)[:, None] + self.bias
        x = F.gelu(torch.einsum("nte,tef->ntf", F.gelu(x, approximate="tanh"), self.middle), approximate="tanh")
        turned = F.pad((now[:, 1:] * now[:, :-1]).mean(-1), (1, 0), value=1.0)[..., None]
        told = (torch.cat([turned, seen.facts], -1) - self.zero) / self.size
        known = torch.cat([x, torch.ones_like(turned), told, unit(seen.read, trajectory.UNIT)], -1)
        hope = torch.einsum("nte,te->nt", known[..., : self.early], self.first)
        said = torch.einsum("nte,teo->nto", known, self.last)
        accept, others, vitality, leave, earliest = said.split([1, 3, 1, 1, said.shape[-1] - 6], -1)
        route = torch.cat([accept, others.log_softmax(-1)], -1)
        return trajectory.Told(route, vitality[..., 0], leave[..., 0], hope, earliest)


class Glimpse(Held):
    def __init__(self, head: glimpse.Head):
        super().__init__()
        self.config = head.config
        self.held(rows=(head.config.count, head.config.dim), rest=(head.config.dim,))
        self.register_buffer("ids", torch.zeros(head.config.count, dtype=torch.int32))

    def forward(self, normed: Tensor) -> glimpse.Glance:
        config = self.config
        logits, rest = (capped(F.linear(normed, rows), config.cap) for rows in (self.rows, self.rest[None]))
        two = logits.topk(2, -1)
        first, gap = two.values[..., :1], two.values[..., :1] - two.values[..., 1:]
        best = two.indices[..., :1]
        shares = torch.exp(logits - first).scatter(-1, best, 0.0)
        alone = config.others * torch.exp(rest - first)
        others = shares.sum(-1, keepdim=True) + alone + glimpse.LEAST
        whole = others.log1p()
        missed = (shares * (first - logits)).sum(-1, keepdim=True) + alone * (first - rest)
        entropy = whole + missed / (1 + others)
        facts = [-whole, others.log() - whole, gap, entropy, first, gap.clamp(max=config.clear)]
        return glimpse.Glance(self.ids[best[..., 0]], torch.cat(facts, -1))  # type: ignore[arg-type]


class Semantic(Held):
    def __init__(self, head: semantic.Head):
        super().__init__()
        of = self.config = head.config
        concepts = sum(of.types)
        latents = concepts + of.width
        self.naming = nn.Linear(of.state, concepts)
        self.held(atoms=(latents, of.state), mean=(of.state,), size=(latents,), usual=())
        self.held(limits=(concepts,), levels=(of.picks, of.width))

    def forward(self, states: Tensor, exactly: bool = True) -> tuple[semantic.Code, Tensor, Tensor]:
        seen = states / torch.exp(log_size(states))[:, None]
        scores = self.naming(seen)
        atoms, count = F.normalize(self.atoms, dim=-1), scores.shape[1]
        active = torch.cat([self.named(scores, exactly), torch.zeros(len(seen), len(atoms) - count).bool()], 1)
        values, left = torch.zeros(len(seen), len(atoms)).to(seen), seen - self.mean
        for step in range(self.config.picks + self.config.settle):
            along = left @ atoms.T
            if step < self.config.picks:
                active = torch.cat(
                    [active[:, :count], active[:, count:] | self.picked(along, active, step, exactly)], 1
                )
            slope = torch.where(active, along, 0.0)
            moved = slope @ atoms
            stride = (slope.square().sum(-1, keepdim=True) / (moved.square().sum(-1, keepdim=True) + 1e-9)).detach()
            values, left = values + stride * slope, left - stride * moved
        code: Any = semantic.Code(scores, active, values.clamp(min=0))  # type: ignore[arg-type]
        return code, self.mean + code.values @ atoms, self.usual + code.values @ self.size

    def named(self, scores: Tensor, exactly: bool) -> Tensor:
        if not exactly:
            return scores > self.limits
        counts = [min(of) for of in zip(self.config.types, self.config.active, strict=True)]
        parts = scores.split(list(self.config.types), 1)
        return torch.cat([highest(of, count) for of, count in zip(parts, counts, strict=True) if count], 1)

    def picked(self, along: Tensor, active: Tensor, step: int, exactly: bool) -> Tensor:
        count = sum(self.config.types)
        free = torch.where(active[:, count:], 0.0, along[:, count:])
        return highest(free, self.config.each) & (free >= 1e-6) if exactly else free > self.levels[step]


class Depth(Held):
    def __init__(self, head: depth.Head, decoder: Any):
        super().__init__()
        dim, self.eps, self.taps = decoder.config.hidden_size, head.eps, head.taps
        self.held(asked=(head.taps, dim), bias=(head.taps,), scale=(head.taps, 1))
        self.held(before_attention=(dim,), before_mlp=(dim,))
        width = head.gate.weight.shape[0]
        self.gate, self.up = (nn.Linear(dim, width, bias=False) for _ in range(2))
        self.down, self.attention = nn.Linear(width, dim, bias=False), nn.ModuleDict()
        for kind, of in head.attention.items():
            own = self.attention[kind] = Held()
            own.q_proj, own.o_proj = (linear(one.weight.shape) for one in (of.q_proj, of.o_proj))
            own.q_norm = Held()
            own.q_norm.held(weight=(of.head_dim,))
        streams = getattr(decoder, "altup_unembed_projections", [])
        self.streams = [tensor(depth.linear(of).weight) for of in streams]  # Gemma 3n's: no part of the head
        self.how = {kind: (of.window, of.head_dim, tensor(of.rope.wavelengths)) for kind, of in head.attention.items()}

    def forward(self, states: Tensor, place: Any, shared: Mapping[str, Any]) -> depth.Mended:
        firsts = states[:-1] if states.ndim == 4 else states[:-1, :, :, 0]
        sources = unit(torch.cat([firsts, self.together(states[-1])[None]]).movedim(0, 2), self.eps)
        weights = ((sources * self.asked).sum(-1) + self.bias).softmax(-1)
        x = unit((weights[..., None] * self.scale * sources).sum(-2), self.eps)
        asks = x * self.before_attention
        x = x + sum(self.attended(kind, asks, place, shared[kind]) for kind in self.how)
        y = unit(x, self.eps) * self.before_mlp
        gate = F.gelu(self.gate(y), approximate="tanh")
        return depth.Mended(x + self.down(gate * self.up(y)), weights)  # type: ignore[arg-type]

    def together(self, state: Tensor) -> Tensor:
        """Gemma 3n's streams, each to the size of the first, as their mean."""
        if state.ndim == 3:
            return state
        first = state[:, :, 0]
        size = first.square().mean(-1, keepdim=True)
        each = [F.linear(state[:, :, n], of.to(state)) for n, of in enumerate(self.streams, 1)]
        each = [x * (size / x.square().mean(-1, keepdim=True).clamp(min=1e-5)).sqrt() for x in each]
        return torch.stack([first, *each]).mean(0)

    def attended(self, kind: str, x: Tensor, place: Any, kv: Any) -> Tensor:
        own: Any = self.attention[kind]
        window, size, wavelengths = self.how[kind]
        batch, length, held = *x.shape[:2], kv.keys.shape[2]
        queries = own.q_proj(x).unflatten(-1, (-1, size)).transpose(1, 2)
        at = torch.arange(place.end - length, place.end)
        queries = turned(unit(queries, self.eps) * own.q_norm.weight, at[:, None] / wavelengths.to(x))
        there = torch.arange(place.end - held, place.end)
        far = at[:, None] - there
        seen = (far >= 0) & (far < (window or math.inf))
        if place.pad is not None:
            text = there >= torch.tensor(np.array(place.pad))[:, None, None, None]
            seen = (seen & text) | (far == 0)
        keys, values = (of.repeat_interleave(queries.shape[1] // of.shape[1], 1) for of in (kv.keys, kv.values))
        shares = torch.where(seen, queries @ keys.transpose(-1, -2), -math.inf).softmax(-1)
        return own.o_proj((shares @ values).transpose(1, 2).reshape(batch, length, -1))


class Transfer(Held):
    def __init__(self, head: transfer.Head):
        super().__init__()
        self.config = head.config
        of, count = head.config, len(head.config.levels)
        self.levels = torch.tensor(of.levels)
        self.expected = nn.Linear(of.told, of.width)
        self.analysis, self.synthesis = linear((count, of.width)), linear((of.width, count))
        self.held(span=(2,))

    def forward(self, states: Tensor, told: Tensor) -> Tensor:
        expected = self.expected(told)
        size, by_size = self.divided(states)
        place = self.place(by_size - expected)
        half = (self.levels - 1) / 2
        level = (place + half).round().clamp(torch.zeros_like(half), 2 * half) - half
        level = place + (level - place).detach()  # the slope is that of a code without steps
        values = karhunen.WIDTH * torch.erfinv(level / (self.levels / 2))
        return (expected + self.synthesis(values)) * self.sized(size)

    def place(self, left: Tensor) -> Tensor:
        return torch.erf(self.analysis(left) / karhunen.WIDTH) * (self.levels / 2)

    def divided(self, states: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.span
        place = (log_size(states)[..., None] - low) / (high - low) * (transfer.SIZES - 1)
        level = place.round().clamp(0, transfer.SIZES - 1)
        return level, states / self.sized(level)

    def sized(self, level: Tensor) -> Tensor:
        low, high = self.span
        return torch.exp(low + level * ((high - low) / (transfer.SIZES - 1)))


def twin(head: Any, decoder: Any = None) -> nn.Module:
    """Of any head, in double precision."""
    found = Depth(head, decoder) if isinstance(head, depth.Head) else KINDS[type(head)](head)
    return taken(found.double(), head)


KINDS = {
    trajectory.Head: Trajectory,
    glimpse.Head: Glimpse,
    semantic.Head: Semantic,
    transfer.Head: Transfer,
}


def taken(twin: nn.Module, head: Any) -> nn.Module:
    """The head's weights: not one is left over, and not one is missing."""
    twin.load_state_dict({name: tensor(of) for name, of in tree_flatten(head.parameters())}, strict=True)
    return twin


def returned(twin: nn.Module, head: Any) -> None:
    """And back."""
    head.load_weights([(name, mx.array(of.numpy())) for name, of in twin.float().state_dict().items()], strict=True)


def twinned(bundle: Bundle) -> Bundle:
    """All heads of a run, asked as they are, and answered by their twins."""
    one = lambda head: Spoken(twin(head, bundle.decoder))
    return bundle._replace(
        plain=one(bundle.plain),
        late=one(bundle.late),
        glance=one(bundle.glance),
        modules=tuple(one(head) for head in bundle.modules),
        names=one(bundle.names),
        codecs={name: one(head) for name, head in senders(bundle).items()},
    )


class Spoken:
    """A twin that is asked as its head is: MLX's arrays go in and come out."""

    def __init__(self, twin: nn.Module):
        self.twin = twin

    def __call__(self, *given: Any, **how: Any) -> Any:
        return answered(self.twin, given, how)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.twin, name)
        return (lambda *given: answered(found, given, {})) if callable(found) else found


def answered(ask: Any, given: Any, how: Any) -> Any:
    with torch.no_grad():
        return each(ask(*each(given, mx.array, lambda x: tensor(x).double()), **how), Tensor, back)


def each(of: Any, kind: type, change: Any) -> Any:
    """All of a kind among what is handed over."""
    if isinstance(of, kind):
        return change(of)
    if isinstance(of, Mapping):
        return {name: each(x, kind, change) for name, x in of.items()}
    if isinstance(of, tuple):
        found = [each(x, kind, change) for x in of]
        return type(of)(*found) if hasattr(of, "_fields") else tuple(found)
    return of


def back(x: Tensor) -> mx.array:
    return mx.array((x.float() if x.is_floating_point() else x).numpy())


def tensor(x: Any) -> Tensor:
    return torch.from_numpy(np.array(x))


def linear(shape: Any) -> nn.Linear:
    return nn.Linear(shape[1], shape[0], bias=False)


def highest(x: Tensor, count: int) -> Tensor:
    return x >= x.detach().topk(count, -1).values[:, -1:]


def unit(x: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def log_size(x: Tensor) -> Tensor:
    return 0.5 * (x.square().mean(-1) + 1e-30).log()


def capped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else cap * torch.tanh(x / cap)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
