"""The contract that both families keep: embed, blocks from anywhere to anywhere, unembed, and one call for all three.

Axes: B rows, L positions, N blocks, P per-layer width, D model width, V vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from agp.cache import KV, Cache, LayerCache
from agp.layers import Place, soft_cap, tail
from agp.models.checks import accept, cache_faults, run_faults
from agp.sites import Site, Visit, plain, record


class Stream(NamedTuple):
    """All that flows from block to block; enough to go on from, here or on another host."""

    hidden: mx.array  # B L D, or B L 4 D for Gemma 3n
    inputs: mx.array | None  # B L N P: what each block is told about the tokens themselves
    end: int  # how many tokens there are up to the last one here, padding included
    pad: mx.array | None  # B: how many of them on the left are padding
    shared: dict[str, KV]  # by layer type, the keys and values that later blocks borrow
    documents: mx.array | None = None  # B L, of packed rows: tokens see those of their own number alone
    where: mx.array | None = None  # B end, of rows that do not stand in step: which token is at each place; < 0: none

    @property
    def place(self) -> Place:
        return Place(self.end, self.pad, self.documents, self.where)


class Output(NamedTuple):
    logits: mx.array  # B L V
    hidden: dict[Site, mx.array]  # only the sites asked for, B L D


@dataclass(eq=False)
class Run:
    """What one block is given besides its input, and the keys and values it leaves behind."""

    place: Place
    inputs: mx.array | None  # B L P
    borrowed: KV | None
    cache: LayerCache | None
    visit: Visit
    last: int | None  # only so many positions come out
    made: KV | None = None


class Decoder(nn.Module):
    """A family adds `start`, `together` (the state that the final norm is for, B L D) and `active`; a block is
    `block(x, run)`."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.identity = object()  # a cache belongs to one model, or to the regimes that share its weights

    def embed(
        self,
        tokens: mx.array | None,
        *,
        vectors: mx.array | None = None,
        end: int | None = None,
        pad: mx.array | None = None,
        where: mx.array | None = None,
    ) -> Stream:
        """Ids, or vectors in the residual's own units, or both: then the ids only pick the per-layer inputs."""
        if vectors is None:
            assert tokens is not None
            vectors = self.embed_vectors(tokens)
        return self.begin(vectors, self.embed_rows(tokens), end=end, pad=pad, where=where)

    def embed_vectors(self, tokens: mx.array) -> mx.array:
        return self.embed_tokens(tokens) * self.config.hidden_size**0.5

    def embed_rows(self, tokens: mx.array | None) -> mx.array | None:
        """Rows of the per-layer table, which may lie on disk: then this reads the ids."""
        config = self.config
        if tokens is None or not config.hidden_size_per_layer_input:
            return None
        if config.vocab_size_per_layer_input < config.vocab_size:  # in Gemma 3n, ids of other senses have no row
            tokens = mx.where(tokens < config.vocab_size_per_layer_input, tokens, 0)
        return self.embed_tokens_per_layer(tokens)

    def begin(
        self,
        vectors: mx.array,
        rows: mx.array | None,
        *,
        end: int | None = None,
        pad: mx.array | None = None,
        documents: mx.array | None = None,
        where: mx.array | None = None,
    ) -> Stream:
        """What comes after both look-ups."""
        inputs, end = self.per_layer_inputs(rows, vectors), vectors.shape[1] if end is None else end
        return Stream(self.start(vectors), inputs, end, pad, {}, documents, where)

    def per_layer_inputs(self, rows: mx.array | None, vectors: mx.array) -> mx.array | None:
        """B L N P: what the ids say, and what the vectors say; without ids the vectors alone."""
        config, told = self.config, self.config.hidden_size_per_layer_input
        if not told:
            return None
        shape = (*vectors.shape[:2], config.num_layers, told)
        projected = self.per_layer_model_projection(vectors) * config.hidden_size**-0.5
        projected = self.per_layer_projection_norm(projected.reshape(shape))
        return projected if rows is None else (projected + rows.reshape(shape) * told**0.5) * 2**-0.5

    def blocks(
        self,
        stream: Stream,
        *,
        start: int = 0,
        stop: int | None = None,
        cache: Cache | None = None,
        visit: Visit = plain,
        last: int | None = None,
    ) -> Stream:
        """Run blocks start..stop. With `last`, only that many positions go on from the last producing block."""
        config = self.config
        until: int = config.num_layers if stop is None else stop
        begin = stream.end - stream.hidden.shape[1]
        wrong = [] if cache is None else cache_faults(cache, self.identity, stream.hidden.shape[0])
        if wrong := wrong + run_faults(config, begin, start, until, cache, visit, last):
            raise ValueError("; ".join(wrong))
        x, inputs, shared, place = stream.hidden, stream.inputs, dict(stream.shared), stream.place
        producers = config.num_producers
        if start >= producers:  # all keys and values are there already
            x, inputs = tail(x, last), tail(inputs, last)
        for i in range(start, until):
            run = Run(
                place,
                inputs=None if inputs is None else inputs[:, :, i],
                borrowed=None if i < producers else self._borrow(shared, i),
                cache=cache.layers[i] if cache is not None and i < producers else None,
                visit=visit,
                last=last if i == producers - 1 else None,
            )
            x = tail(visit(Site(i, "block"), partial(self.layers[i], run=run), x), run.last)
            if run.made is None and run.cache is not None:
                raise ValueError(f"block {i} was skipped, so this cache has a hole; skip it without one, or `zero` it")
            if run.made is not None and i in config.lenders:
                shared[config.layer_types[i]] = run.made
            if run.last is not None:
                inputs = tail(inputs, last)
        return stream._replace(hidden=x, inputs=inputs, shared=shared)

    def unembed(self, stream: Stream) -> mx.array:
        return self.head(self.normed(stream.hidden))

    def normed(self, hidden: mx.array) -> mx.array:
        return self.norm(self.together(hidden))

    def head(self, normed: mx.array) -> mx.array:
        """Logits, B L V, of states that are normed already."""
        logits, cap = self.uncapped(normed), self.config.final_logit_softcapping
        return logits if cap is None else soft_cap(logits, mx.array(cap))

    def uncapped(self, normed: mx.array) -> mx.array:
        return self.embed_tokens.as_linear(normed) if self.config.tie_word_embeddings else self.lm_head(normed)

    def __call__(
        self,
        tokens: Any = None,
        *,
        vectors: Any = None,
        cache: Cache | None = None,
        taps: Collection[Site] = (),
        visit: Visit = plain,
        pad: Any = None,
        last: int | None = None,
    ) -> Output:
        """Logits and the taps asked for; tokens, vectors and pad are arrays or lists.

        It looks at the ids, so inside mx.compile call embed, blocks and unembed, which trust what they are given.
        """
        position = 0 if cache is None else cache.position
        tokens, vectors, pad = accept(self.config, self.identity, tokens, vectors, cache, pad)
        if cache is not None:
            cache.pad = pad
        length = (vectors if tokens is None else tokens).shape[1]
        taken: dict[Site, mx.array] = {}
        visit = record(taken, [Site(*tap) for tap in taps], then=visit) if taps else visit
        stream = self.embed(tokens, vectors=vectors, end=position + length, pad=pad)
        stream = self.blocks(stream, cache=cache, visit=visit, last=last)
        return Output(self.unembed(stream), {site: self.active(site, x) for site, x in taken.items()})

    def make_cache(self, slack: int = 0) -> Cache:
        """With `slack` so many tokens can be forgotten at any time: sliding layers keep as many beyond their window."""
        config = self.config
        return Cache([config.window(i) for i in range(config.num_producers)], self.identity, slack)

    def _borrow(self, shared: dict[str, KV], i: int) -> KV:
        kind = self.config.layer_types[i]
        if kind not in shared:
            raise ValueError(
                f"block {i} borrows the {kind} keys and values of block {self.config.sources[i]}, which are not in the "
                "stream; that block was skipped, or the stream was restored without `shared`"
            )
        return shared[kind]
