"""What is wrong with a call, said at once and before anything is changed."""

from typing import Any

import mlx.core as mx

from agp.cache import Cache
from agp.models.layout import Layout
from agp.sites import PARTS, Visit

Accepted = tuple[mx.array | None, mx.array | None, mx.array | None]  # tokens, vectors, pad


def accept(config: Layout, owner: object, tokens: Any, vectors: Any, cache: Cache | None, pad: Any = None) -> Accepted:
    """The arrays of a call, if they fit each other, the model and the cache."""
    if tokens is None and vectors is None:
        raise ValueError("give tokens, vectors, or both")
    tokens, wrong = ids(tokens)
    vectors = None if vectors is None else mx.array(vectors)
    given = vectors if tokens is None else tokens
    if tokens is not None and tokens.ndim != 2:
        raise ValueError(f"tokens are B L, one row a text; got shape {tokens.shape}")
    if vectors is not None and (vectors.ndim != 3 or vectors.shape[-1] != config.hidden_size):
        raise ValueError(f"vectors are B L {config.hidden_size}; got shape {vectors.shape}")
    if given.size == 0:
        raise ValueError("the prompt is empty; give at least one token (tokenizers add <bos> for you)")
    if tokens is not None and vectors is not None and vectors.shape[:2] != tokens.shape:
        wrong.append(f"tokens {tokens.shape} and vectors {vectors.shape} differ in rows or positions")
    if tokens is not None and not wrong:
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= config.vocab_size:
            wrong.append(f"token ids go from {low} to {high}; this vocabulary is 0..{config.vocab_size - 1}")
    rows, length = given.shape[:2]
    position = 0 if cache is None else cache.position
    if position + length > config.max_position_embeddings:
        wrong.append(f"{position + length} tokens do not fit the context of {config.max_position_embeddings}")
    wrong += [] if cache is None else cache_faults(cache, owner, rows)
    pad, faults = padding(pad, rows, position)
    if wrong := wrong + faults:
        raise ValueError("; ".join(wrong))
    return tokens, vectors, cache.pad if cache is not None and position else pad


def ids(tokens: Any) -> tuple[Any, list[str]]:
    if tokens is None:
        return None, []
    try:
        tokens = mx.array(tokens)
    except (ValueError, TypeError) as e:
        raise ValueError(f"tokens are rows of whole numbers, equally long: {e}") from e
    if tokens.size and not mx.issubdtype(tokens.dtype, mx.integer):
        return tokens, [f"token ids are whole numbers; got {str(tokens.dtype).removeprefix('mlx.core.')}"]
    return tokens.astype(mx.int32), []


def padding(pad: Any, rows: int, position: int) -> tuple[mx.array | None, list[str]]:
    """How much of each row, on the left, is not text; more than this chunk holds, where a later one begins the text."""
    if pad is None:
        return None, []
    if position:
        return None, ["pad is given with the first tokens of a cache, not later"]
    pad = mx.array(pad)
    if pad.shape != (rows,) or not mx.issubdtype(pad.dtype, mx.integer):
        return None, [f"pad is one whole number for each of {rows} rows; got {pad.tolist()}"]
    if int(pad.min()) < 0:
        return None, [f"pad is {pad.tolist()}; it counts positions, from 0 on"]
    return pad, []


def cache_faults(cache: Cache, owner: object, rows: int) -> list[str]:
    if cache.owner is not owner:
        return ["the cache was made by another model; use this model's make_cache()"]
    if cache.rows not in (None, rows):
        return [f"the cache holds {cache.rows} rows, this call has {rows}"]
    return []


def run_faults(
    config: Layout, begin: int, start: int, stop: int, cache: Cache | None, visit: Visit, last: int | None
) -> list[str]:
    """Of blocks start..stop over tokens that begin at position `begin`."""
    wrong = []
    if last is not None and last < 1:
        wrong.append(f"last is {last}; ask for one position at least")
    if not 0 <= start <= stop <= config.num_layers:
        wrong.append(f"blocks {start}..{stop} are not a range within 0..{config.num_layers}")
    sites = getattr(visit, "sites", ())
    if lacking := [s for s in sites if s.layer not in range(config.num_layers) or s.part not in PARTS]:
        wrong.append(
            f"no such site: {', '.join(map(str, sorted(lacking)))}; "
            f"blocks are 0..{config.num_layers - 1}, parts {', '.join(PARTS)}"
        )
    if cache is not None and not wrong:
        held = {i: cache.layers[i].offset for i in range(start, min(stop, config.num_producers))}
        if off := {i: n for i, n in held.items() if n != begin}:
            wrong.append(f"the stream starts at token {begin}, but the cache holds {off} (block: tokens)")
    return wrong
