"""Whether early keeps its promise where it decodes: along its own answers, token by token, beside full depth.

Full depth reads prompt and answer in one pass, and so says of each place what it would have gone on with. A token that
left early and is another is lost. Nothing is audited: the router alone is measured, and nothing falls back to lossless.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from agp.audit import Audit
from agp.follow import Way, follow
from agp.generate import greedy
from agp.models.decoder import Decoder
from agp.replies import Replies
from agp.stats import bootstrap_mean
from curricula.documents import Prompt
from scripts.bench.promises_lossless import LONGEST, ends
from scripts.routes import Opened, way

SEED = 0


class Told(NamedTuple):
    """Tokens of an answer."""

    document: str
    source: str
    tokens: int
    left: int  # early
    lost: int  # left early, and full depth says another
    unlike: int  # came from full depth, and in one pass it says another: as rounding has it, at most


def told(prompt: Prompt, model: Decoder, begin: Callable[[Replies], Way], stop: set[int]) -> Told:
    replies, last = Replies.begun(model, [prompt.ids]), model.config.num_layers - 1
    tokens = list(follow(begin(replies), max_tokens=LONGEST, stop=stop))
    ids, left = (np.array(of) for of in zip(*((token.id, token.block < last) for token in tokens), strict=True))
    logits = model([[*prompt.ids, *ids[:-1].tolist()]]).logits[0, len(prompt.ids) - 1 :]
    other = np.array(greedy(logits, [])) != ids
    counts = (int(of.sum()) for of in (left, left & other, ~left & other))
    return Told(prompt.cluster, prompt.source, len(ids), *counts)


def measured(given: Opened, prompts: Sequence[Prompt], risk: str) -> dict[str, Any]:
    def begin(replies: Replies) -> Way:
        return way(given, "early", replies, greedy, audit=Audit(float(risk), rate=0.0), watching=False)

    found, stop = [], ends(given)
    for prompt in tqdm(prompts, desc=f"early at {risk}", leave=False):
        found.append(told(prompt, given.heads.decoder, begin, stop))
        mx.clear_cache()
    return summary(found, float(risk))


def risks(limits: Mapping[str, float | None]) -> list[str]:
    """Those for which something may leave."""
    return [risk for risk, threshold in limits.items() if threshold is not None]


def summary(found: Sequence[Told], risk: float) -> dict[str, Any]:
    """The unit is the document, as it is for the promise."""
    losses = by_document(found)
    mean = bootstrap_mean(losses, SEED)
    tokens, left, lost, unlike = (sum(of) for of in zip(*(of[2:] for of in found), strict=True))
    sources = sorted({of.source for of in found})
    return {
        "loss": mean.value,
        "interval": list(mean.interval),
        "kept": mean.value <= risk,
        "kept by all of the interval": mean.interval[1] <= risk,
        "left": left / tokens,
        "documents": len(losses),
        "tokens": tokens,
        "lost": lost,
        "unlike at full depth": unlike,
        "loss by source": {
            name: float(by_document([of for of in found if of.source == name]).mean()) for name in sources
        },
    }


def by_document(found: Sequence[Told]) -> np.ndarray:
    """Of each document the share of its tokens that are lost."""
    _, at = np.unique([of.document for of in found], return_inverse=True)
    lost, tokens = (np.bincount(at, [getattr(of, name) for of in found]) for name in ("lost", "tokens"))
    return lost / tokens
