"""Many prompts at once, each continued until its own end."""

from collections.abc import Collection, Sequence

import mlx.core as mx
import numpy as np

from agp.generate import Sampler, greedy, step
from agp.models.decoder import Decoder
from agp.sites import Visit, plain


def padded(rows: Sequence[Sequence[int]]) -> tuple[mx.array, mx.array]:
    """Ids with all ends on the right, B L, and how many places are empty before each, B."""
    longest = max(map(len, rows))
    ids = np.zeros((len(rows), longest), np.int32)
    for r, row in enumerate(rows):
        ids[r, longest - len(row) :] = row
    return mx.array(ids), mx.array([longest - len(row) for row in rows])


def continued(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampler: Sampler = greedy,
    stop: Collection[int] = (),
    visit: Visit = plain,
) -> list[list[int]]:
    """What follows each prompt; one of `stop` is the last, and is handed out too. Only the prompts are visited.

    Each row draws for itself: of one prompt, given twice, two texts are drawn.
    """
    ids, pad = padded(prompts)
    cache = model.make_cache()
    cache.pad = pad
    found: list[list[int]] = [[] for _ in prompts]
    logits = step(model, ids, cache, visit)
    for left in reversed(range(max_tokens)):
        token = sampler(logits, (np.arange(len(prompts)) << 32) + max_tokens - 1 - left)
        for row, new in zip(found, np.array(token).tolist(), strict=True):
            if not row or row[-1] not in stop:
                row.append(new)
        if not left or all(row[-1] in stop for row in found):
            return found
        logits = step(model, token[:, None], cache)
    return found
