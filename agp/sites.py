"""Named places inside a decoder, and what may be done there.

A decoder calls `visit(site, fn, x)` wherever it would call `fn(x)`. Reading, ablating, patching, steering, gating and
skipping are all visits, so no decoder knows about any of them.

What flows through a site:
- "block": the residual, before and after one block. `B L D`; Gemma 3n's four AltUp streams are `B L 4 D`.
- "attn", "mlp": the residual goes in, and what the part adds to it comes out, norms included.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Literal, NamedTuple

import mlx.core as mx

Part = Literal["block", "attn", "mlp"]
PARTS: tuple[Part, ...] = ("block", "attn", "mlp")


class Site(NamedTuple):
    layer: int
    part: Part

    def __str__(self) -> str:
        return f"{self.layer}.{self.part}"


Fn = Callable[[mx.array], mx.array]
Visit = Callable[[Site, Fn, mx.array], mx.array]


def plain(site: Site, fn: Fn, x: mx.array) -> mx.array:
    return fn(x)


class At:
    """A visit that acts at its sites only and calls `fn` everywhere else; a decoder refuses sites that it lacks."""

    def __init__(self, sites: Collection[Site], act: Visit, elsewhere: Visit = plain):
        self.sites = frozenset(sites) | getattr(elsewhere, "sites", frozenset())
        self._here, self._act, self._elsewhere = frozenset(sites), act, elsewhere

    def __call__(self, site: Site, fn: Fn, x: mx.array) -> mx.array:
        return (self._act if site in self._here else self._elsewhere)(site, fn, x)


def record(into: dict[Site, mx.array], sites: Collection[Site], then: Visit = plain) -> Visit:
    """Keep what comes out of `sites`; `then` is what is done there and elsewhere."""

    def act(site, fn, x):
        into[site] = y = then(site, fn, x)
        return y

    return At(sites, act, elsewhere=then)


def zero(sites: Collection[Site]) -> Visit:
    """Ablate: a part adds nothing, a block passes its input through. Keys and values are still made for borrowers."""

    def act(site, fn, x):
        y = fn(x)
        return x[:, -y.shape[1] :] if site.part == "block" else mx.zeros_like(y)

    return At(sites, act)


def skip(sites: Collection[Site]) -> Visit:
    """Do not call at all: what a dropped layer is. A block whose keys and values others borrow cannot be skipped."""
    return At(sites, lambda site, fn, x: x if site.part == "block" else mx.zeros_like(x))


def patch(values: Mapping[Site, mx.array], active: int = 0) -> Visit:
    """Replace what comes out. A `B L D` value at a block of four streams replaces the `active` one."""

    def act(site, fn, x):
        y, value = fn(x), values[site].astype(x.dtype)
        if y.ndim == value.ndim + 1:
            value = mx.concatenate([y[..., :active, :], value[..., None, :], y[..., active + 1 :, :]], axis=-2)
        if y.shape != value.shape:
            raise ValueError(f"the patch for {site} has shape {value.shape}; the state there has {y.shape}")
        return value

    return At(values.keys(), act)


def add(values: Mapping[Site, mx.array], scale: float = 1.0) -> Visit:
    """Steer: add a vector (anything that broadcasts) to what comes out."""
    return At(values.keys(), lambda site, fn, x: (y := fn(x)) + (scale * values[site]).astype(y.dtype))


def gate(weights: Mapping[Site, mx.array | float]) -> Visit:
    """Scale what a block or part contributes: 1 is the plain decoder, 0 is `zero`."""

    def act(site, fn, x):
        y = fn(x)
        if site.part != "block":
            return weights[site] * y
        x = x[:, -y.shape[1] :]
        return x + weights[site] * (y - x)

    return At(weights.keys(), act)
