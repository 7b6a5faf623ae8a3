"""One token after another: prefill in chunks, a pipeline that never waits for Python, samplers that a seed decides."""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.cache import Cache
from agp.models.checks import accept
from agp.models.decoder import Decoder
from agp.sites import Visit, plain

CHUNK = 512  # prompt tokens run at once: longer chunks are no faster, and attention scores grow with them

COLDEST = 1e-5  # below it the likeliest token is the only one, and logits would overflow

Sampler = Callable[[mx.array, Sequence[int] | np.ndarray], mx.array]  # logits, B V, and each row's draw, to ids, B
Progress = Callable[[int, int], None]  # prompt tokens done, and all of them


class Step(NamedTuple):
    token: int
    logits: mx.array  # V: what the token was chosen from

    @property
    def logprob(self) -> float:
        logits = self.logits.astype(mx.float32)
        value: Any = logits[self.token] - mx.logsumexp(logits)
        return value.item()


def greedy(logits: mx.array, draws: Sequence[int] | np.ndarray) -> mx.array:
    return mx.argmax(logits, axis=-1)


def make_sampler(temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> Sampler:
    """Greedy at temperature 0. Seed and number of a draw decide its chances: as often as it is asked, in any company,
    the same logits give the same token, and logits that are nearly the same nearly always do."""
    wrong = []
    if not 0 <= temperature < float("inf"):
        wrong.append(f"temperature is {temperature}; 0 (greedy) or above is needed")
    if not 0 < top_p <= 1:
        wrong.append(f"top_p is {top_p}; above 0 and up to 1 (all tokens) is needed")
    if not 0 <= seed < 2**64:
        wrong.append(f"seed is {seed}; a whole number from 0 to 2**64 - 1 is needed")
    if wrong:
        raise ValueError("; ".join(wrong))
    if temperature < COLDEST:
        return greedy

    def draw(logits: mx.array, draws: Sequence[int] | np.ndarray) -> mx.array:
        logits = logits.astype(mx.float32) / temperature
        logits = logits if top_p == 1 else nucleus(logits, top_p)
        chances = [mx.random.gumbel(logits.shape[1:], key=chance(seed, int(number))) for number in draws]
        return mx.argmax(logits + mx.stack(chances), axis=-1)

    return draw


def chance(seed: int, draw: int) -> mx.array:
    return mx.random.key(int(np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0]))


def nucleus(logits: mx.array, top_p: float) -> mx.array:
    """Rule out all but the fewest most likely tokens that hold `top_p` of the probability between them."""
    shares = mx.softmax(logits, axis=-1)
    falling = -mx.sort(-shares, axis=-1)
    needed = mx.sum(mx.cumsum(falling, axis=-1) - falling < top_p, axis=-1, keepdims=True)
    return mx.where(shares < mx.take_along_axis(falling, needed - 1, axis=-1), -mx.inf, logits)


def generate(
    model: Decoder,
    tokens: Sequence[int],
    *,
    max_tokens: int,
    sampler: Sampler = greedy,
    stop: Collection[int] = (),
    cache: Cache | None = None,
    chunk: int = CHUNK,
    progress: Progress | None = None,
) -> Generator[Step, None, None]:
    """Yield up to `max_tokens` tokens that follow `tokens`; one of `stop` is the last, and is handed out too.

    It ends early where the context is full. However it ended, `cache` holds all tokens but the last one handed out:
    go on with that one and what follows it.
    """
    for name, number in (("chunk", chunk), ("max_tokens", max_tokens)):
        if number < 1:
            raise ValueError(f"{name} is {number}; 1 or more is needed")
    cache = model.make_cache() if cache is None else cache
    prompt, _, _ = accept(model.config, model.identity, [list(tokens)], None, cache)
    assert prompt is not None, "tokens in, tokens out"
    logits = prefill(model, prompt, cache, chunk, progress)
    room = 1 + model.config.max_position_embeddings - cache.position  # the last token needs no place in the cache
    return pipeline(model, logits, cache, min(max_tokens, room), sampler, frozenset(stop))


def prefill(model: Decoder, prompt: mx.array, cache: Cache, chunk: int, progress: Progress | None = None) -> mx.array:
    """Fill the cache; logits, B V, after the last token. All blocks that make no keys or values run for it alone."""
    total, producers = prompt.shape[1], model.config.num_producers
    starts = range(0, total, chunk)
    for start in starts[:-1]:
        stream = model.embed(prompt[:, start : start + chunk], end=cache.position + chunk, pad=cache.pad)
        model.blocks(stream, stop=producers, cache=cache)
        mx.eval(cache.arrays)
        mx.clear_cache()  # a chunk's scores are larger than anything that decoding needs
        if progress:
            progress(start + chunk, total)
    logits = step(model, prompt[:, starts[-1] :], cache)
    mx.async_eval(logits)
    if progress:
        mx.eval(logits)
        progress(total, total)
    return logits


def step(model: Decoder, tokens: mx.array, cache: Cache, visit: Visit = plain) -> mx.array:
    """Logits, B V, after the last of `tokens`, whose ids need not be known yet: only a table on disk waits for them."""
    stream = model.embed(tokens, end=cache.position + tokens.shape[1], pad=cache.pad)
    return model.unembed(model.blocks(stream, cache=cache, visit=visit, last=1))[:, -1]


def pipeline(
    model: Decoder, logits: mx.array, cache: Cache, count: int, sampler: Sampler, stop: frozenset[int]
) -> Generator[Step, None, None]:
    """Hand out a token while the next one is computed."""
    prompt, handed = cache.position, 0
    token = sampler(logits, [0])
    mx.async_eval(token)
    try:
        for left in reversed(range(count)):
            now, given = token, logits
            if left:
                logits = step(model, now[:, None], cache)
                token = sampler(logits, [count - left])
                mx.async_eval(token, logits)
            out: Any = now.item()
            handed += 1
            yield Step(out, given[0])
            if out in stop or not left:
                return
            if handed % 256 == 0:
                mx.clear_cache()  # buffers of lengths that will not come back
    finally:
        cache.trim(cache.position - prompt - max(handed - 1, 0))


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Text up to the first stop string, passed on as soon as it cannot be the beginning of one."""
    if "" in stops:
        raise ValueError("a stop string is empty; leave it out")
    held = ""
    for piece in pieces:
        held += piece
        ends = [(at + len(stop), at) for stop in stops if (at := held.find(stop)) >= 0]
        if ends:
            yield held[: min(ends)[1]]
            return
        safe = len(held) - beginning(held, stops)
        if safe:
            yield held[:safe]
        held = held[safe:]
    yield held


def beginning(text: str, stops: Sequence[str]) -> int:
    """How many of the last characters may begin a stop string."""
    longest = min(len(text), max(map(len, stops), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in stops)), 0)
