"""One shard of the harvest: what the teacher says to some prompts, its states there, and what is true of them."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from agp.batch import continued, padded
from agp.generate import Sampler, greedy
from agp.layers import tail
from agp.models.decoder import Decoder, Stream
from agp.models.load import Loaded
from agp.sites import Site, record
from agp.train import drawn
from curricula import oracle
from curricula.documents import Prompt
from curricula.features import halved

Arrays = dict[str, np.ndarray]


def observe(
    config: Any, loaded: Loaded, taps: Sequence[int], given: Sequence[Prompt], number: int, vital: bool
) -> Arrays:
    """Those to which much is said stand together: a batch is as wide as its longest answer."""
    model, tokenizer = loaded.model, loaded.tokenizer
    assert tokenizer is not None
    sampler = by_turns(config.temperature, drawn(config.seed, number)) if given[0].drawn else greedy
    asked = [prompt.ids for prompt in given]
    said = continued(model, asked, max_tokens=config.answer, sampler=sampler, stop=tokenizer.eos_ids)
    order = sorted(range(len(given)), key=lambda i: (len(said[i]), len(asked[i]), i))
    parts = []
    for at in range(0, len(order), config.together):
        some = order[at : at + config.together]
        key = mx.random.key(drawn(config.seed, number, at + 1))
        of = batch(config, model, taps, [asked[i] for i in some], [said[i] for i in some], key if vital else None)
        parts.append({"row": np.array(some)} | of)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: a.astype(np.int32) if a.dtype == np.int64 else a for name, a in whole.items()}


def by_turns(temperature: float, seed: int) -> Sampler:
    """One key for all rows, another at each step: what a shard says hangs on its rows and their order."""
    key = mx.random.key(seed)

    def draw(logits: mx.array, draws: Any) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        return mx.random.categorical(logits.astype(mx.float32) / temperature, key=now)

    return draw


def batch(
    config: Any,
    model: Decoder,
    taps: Sequence[int],
    asked: list[Sequence[int]],
    said: list[list[int]],
    key: mx.array | None,
) -> Arrays:
    """With a `key` for disturbances, vitality as well; without, it is nan."""
    ids, pad = padded([[*before, *after[:-1]] for before, after in zip(asked, said, strict=True)])
    count = max(map(len, said))
    stream, states = observed(model, ids, pad, taps, count, ends(config))
    places = np.arange(count) >= count - np.array([[len(after)] for after in said])
    at = mx.array(np.flatnonzero(places))

    def flat(x: mx.array) -> mx.array:
        return x.flatten(0, 1)[at]

    final = flat(model.together(stream.hidden))
    lens = mx.stack([flat(model.together(state)) for state in states], axis=1)
    reading, taught = oracle.read(model, lens, final, config.keep)
    hidden, scale = halved(numbers(mx.stack([flat(state) for state in states], axis=1)))
    last, last_scale = halved(numbers(final))
    firsts = np.array([len(tokens) for tokens in asked])
    found = {
        "first": firsts,
        "length": firsts + [len(tokens) for tokens in said],
        "ids": np.concatenate([[*before, *after] for before, after in zip(asked, said, strict=True)]),
        **{"hidden": hidden, "scale": scale, "final": last, "final_scale": last_scale},
        **{name: np.array(value) for name, value in reading._asdict().items()},
        "taught": np.array(taught.ids),
        "taught_logs": numbers(taught.logs).astype(np.float16),
        "vitality": np.full(reading.margin.shape, np.nan, np.float32),
        **lent(model, stream, np.array(pad), ids.shape[1]),
    }
    if key is not None:
        tokens = mx.zeros(places.size, mx.int32)
        tokens[at] = taught.ids[:, 0]
        here = stream._replace(inputs=tail(model.embed(ids).inputs, count))
        alive = survived(config, model, here, taps, states, tokens.reshape(places.shape), key)
        found["vitality"] = numbers(mx.stack([flat(of) for of in alive], axis=1))
    return found


def survived(
    config: Any,
    model: Decoder,
    stream: Stream,
    taps: Sequence[int],
    states: list[mx.array],
    tokens: mx.array,
    key: mx.array,
) -> list[mx.array]:
    """Vitality at each tap."""
    how = {"sigma": config.sigma, "noises": config.noises, "omissions": config.omissions}
    keys = mx.random.split(key, len(taps))
    return [
        oracle.vitality(model, stream._replace(hidden=state), tap, tokens, key=own, **how)
        for tap, state, own in zip(taps, states, keys, strict=True)
    ]


def observed(
    model: Decoder, ids: mx.array, pad: mx.array, taps: Sequence[int], count: int, end: int
) -> tuple[Stream, list[mx.array]]:
    """The last `count` positions after all blocks, and after each tap; the last token stands just before `end`."""
    taken: dict[Site, mx.array] = {}
    sites = [Site(tap, "block") for tap in taps]
    begun = model.embed(ids, end=end, pad=pad + (end - ids.shape[1]))
    stream = model.blocks(begun, visit=record(taken, sites), last=count)
    states = [tail(taken[site], count) for site in sites]
    mx.eval(stream.hidden, states)
    return stream, states


def kinds(model: Decoder) -> list[str]:
    """Of keys and values that blocks above borrow."""
    return sorted({model.config.layer_types[i] for i in model.config.lenders})


def lent(model: Decoder, stream: Stream, pad: np.ndarray, length: int) -> Arrays:
    """A line a token, padding left out."""
    text = np.arange(length) >= pad[:, None]
    found = {}
    for kind in kinds(model):
        for what, array in zip(("keys", "values"), stream.shared[kind], strict=True):
            found[f"{what}.{kind}"] = numbers(array.swapaxes(1, 2))[text].astype(np.float16)
    return found


def ends(config: Any) -> int:
    """Where every document ends: keys are turned by their positions, and so fit each other whatever they are beside."""
    return config.longest + config.answer


def numbers(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32))
