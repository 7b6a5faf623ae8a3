"""A run opened for decoding: its teacher, its heads, and the way that a mode names; what each token of it carries."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.assisted import Assisted
from agp.audit import Audit
from agp.beyond import Beyond, Cost
from agp.early import Early, Watched
from agp.follow import Full, Token
from agp.generate import Sampler, greedy
from agp.lookup import Ending, Lookup, common
from agp.lossless import Lossless, Proposer, Untapped
from agp.models import gemma3n
from agp.models.assistant import Assistant, load_assistant
from agp.models.decoder import Decoder
from agp.models.load import DTYPES, Loaded
from agp.pace import Pace
from agp.peer import Remote
from agp.regimes import named, nested
from agp.replies import Replies
from agp.text import Tokenizer
from agp.uplift import WHOLE, called, label, numbers, whole_of
from curricula.features import Features
from curricula.teacher import folded, teacher
from heads import bundle, clusters
from heads.bundle import Bundle

MODES = ("full", "early", "lossless")
MOST = 6  # drafts at once
RATE = 0.05  # of early tokens that are audited
LEAST = 0.5  # log-odds of the least sure of those that the tap makes; one costs about half of what it may save


class Opened(NamedTuple):
    loaded: Loaded
    heads: Bundle
    known: dict[Ending, int]  # what follows what in the teacher's own texts
    assistant: Assistant | None = None  # Google's drafter
    small: clusters.Head | None = None  # what proves the likeliest token with less than the whole head


def whole(run: Path) -> None:
    """Raises where it is not."""
    if not run.is_dir():
        raise ValueError(
            f"{run} is {'a file' if run.exists() else 'not there'}; a folder that `agp train` made is needed"
        )
    if not (run / "recipe.json").exists() and not (run / "domain").exists():
        raise ValueError(
            f"{run} is no finished run, nor one that was begun; `agp train` makes one, `agp runs` lists them"
        )
    if missing := [stage for stage in ("domain", "calibrate") if not (run / stage / "manifest.json").exists()]:
        raise ValueError(
            f"{run} is no finished run: {' and '.join(missing)} are not whole there; `agp runs` says how far it is, "
            "and `agp train` goes on with it"
        )


def opened(run: Path, drafter: str | None = None, regime: str | None = None) -> Opened:
    """With a `regime` the heads, which learned from the whole model, read that smaller one."""
    whole(run)
    loaded = teacher(run / "domain")
    folded(loaded.model)
    assistant = None if drafter is None else assistant_of(loaded, drafter)
    model = viewed(loaded, regime)
    heads, ends = bundle.load(run, loaded.model), known(run / "harvest")
    return Opened(replace(loaded, model=model, config=model.config), lowered(heads, model), ends, assistant)


def assistant_of(loaded: Loaded, path: str) -> Assistant:
    """Its weights as wide as those of the model that it drafts for."""
    kind = loaded.model.norm.weight.dtype
    return load_assistant(path, loaded.config, next(name for name, of in DTYPES.items() if of == kind))


def viewed(loaded: Loaded, regime: str | None) -> Decoder:
    """The whole model, or a smaller one in it that its checkpoint names."""
    whole = whole_of(loaded.model)
    if regime is None:
        return whole
    if not isinstance(whole, gemma3n.Model):
        raise ValueError(f"{loaded.path} is no Gemma 3n, which alone has regimes; leave out {regime}")
    regimes = named(whole.config, loaded.path)
    if regime not in regimes:
        raise ValueError(f"{loaded.path} has no regime {regime}; it has {', '.join(regimes)}")
    view = nested(whole, regimes[regime], regime)
    return whole if label(view) == WHOLE else view


def lowered(heads: Bundle, model: Decoder) -> Bundle:
    """Heads count blocks as the whole model does: they stay as far as the smaller one does so too."""
    same = sum(i == n for i, n in enumerate(numbers(model)))
    taps = [tap for tap in heads.taps if tap < same]
    if (last := max([heads.taps[at] for at in heads.exits] + [heads.taps[0], heads.named])) >= same:
        raise ValueError(f"the heads of this run read up to block {last}, and that regime leaves out block {same}")
    return heads._replace(decoder=model, taps=tuple(taps), budget=min(heads.budget, len(taps) - 1))


def known(harvest: Path) -> dict[Ending, int]:
    """Of what the heads learned from; nothing where a harvest, which is large, was cleared away."""
    if not (harvest / "manifest.json").exists():
        return {}
    told = Features(harvest, "heads")
    return common(told.of(document, "ids") for document in range(len(told.begins)))


def way(
    given: Opened,
    mode: str,
    replies: Replies,
    sampler: Sampler,
    *,
    audit: Audit | None = None,
    pace: Pace | None = None,
    watching: bool = True,
    beyond: Callable[[int], Beyond] | None = None,
    likeliest: Callable[[], bool] | None = None,
) -> Full | Lossless | Watched:
    """How `mode` goes on with replies. Early is audited, and becomes lossless where its promise is found broken.

    `beyond` a tap another host may run the blocks. A small head is asked only while the `likeliest` tokens are all that
    is wanted: by default, where the sampler is greedy.
    """
    if mode == "full":
        return Full(replies, sampler)
    heads, likeliest = given.heads, likeliest or (lambda: sampler is greedy)
    named = heads.named if watching else None
    above = named if named is not None and named > heads.taps[0] else None
    drafter, proposer = bundle.Drafter(heads), proposing(given.assistant, replies, given.known)
    how = {"proposer": proposer, "most": MOST, "least": LEAST, "pace": pace or Pace(), "watch": above}
    how["drawn"] = not likeliest()
    if given.small is not None:
        how["proving"] = Proving(given.small, heads.decoder, likeliest)
    near = beyond and beyond(drafter.tap)
    if mode != "lossless" and near and not near.same:
        near = None  # what early falls back to says what this host would
    lossless = Lossless(replies, drafter, sampler, beyond=near, **how)
    if mode == "lossless":
        return lossless
    assert audit is not None, "what early promises is watched"
    router = bundle.Router(heads, limited(heads, audit.risk))
    far = beyond and beyond(router.taps[-1])
    early = Early(replies, router, sampler, audit=audit, watch=named, beyond=far, proving=lossless.proving)
    return Watched(early, lossless)


class Proving(NamedTuple):
    small: clusters.Head
    decoder: Decoder
    likeliest: Callable[[], bool]

    def __call__(self, normed: mx.array) -> np.ndarray | None:
        return self.small.exact(self.decoder.head, normed).token if self.likeliest() else None


def untapped(assistant: Assistant, replies: Replies, sampler: Sampler) -> Lossless:
    """Lossless without heads: every draft goes up to full depth."""
    drafter = Untapped(replies.model.config.num_producers - 1)
    return Lossless(replies, drafter, sampler, proposer=proposing(assistant, replies, {}), most=MOST, pace=Pace())


def proposing(assistant: Assistant | None, replies: Replies, known: dict[Ending, int]) -> Proposer:
    return Lookup(known) if assistant is None else Assisted(assistant, replies, Lookup(known))


def limited(heads: Bundle, risk: float) -> str:
    """The name by which the run knows a risk."""
    known = heads.limits["revive"]
    name = f"{risk:g}"
    if name not in known:
        raise ValueError(f"this run promises nothing for a risk of {risk:g}; it was calibrated for {', '.join(known)}")
    if known[name] is None:
        raise ValueError(f"at a risk of {name} this run lets no token leave early; {', '.join(known)} were asked for")
    return name


class Trace:
    """What was decided of each token, as lines of JSON, and in one line at the end."""

    def __init__(self, heads: Bundle, file: Any, peers: Mapping[int, Remote], upper: Decoder):
        """Where a peer made a token, it did so by the blocks of `upper`."""
        self.heads, self.file, self.peers, self.upper = heads, file, peers, upper
        self.depths: dict[int, int] = {}
        self.fallen = False

    def through(self, tokens: Iterable[Token], tokenizer: Tokenizer) -> Iterator[Token]:
        for token in tokens:
            block = needed(token, self.heads.decoder, self.upper)
            self.depths[block] = self.depths.get(block, 0) + 1
            self.fallen |= token.fallen
            if self.file is not None:
                line = {"text": tokenizer.decode([token.id], special=True)} | described(self.heads, token, self.upper)
                print(json.dumps(line), file=self.file, flush=True)
            yield token

    def __str__(self) -> str:
        count = sum(self.depths.values())
        parts = [f"{n / count:.0%} after block {block}" for block, n in sorted(self.depths.items())]
        here, beyond = called(self.heads.decoder), called(self.upper)
        parts += [] if here == beyond else [f"regime {here} here and {beyond} beyond"]
        parts += ["early has fallen back to lossless"] if self.fallen else []
        for tap, peer in self.peers.items():
            of = peer.counts
            why = f", at last: {of.last}" if of.last and of.answered < of.calls else ""
            parts.append(
                f"peer after block {tap}: {of.answered} of {of.calls} calls answered, {of.sent} bytes sent{why}"
            )
        return ", ".join(parts)


def route(token: Token, last: int) -> str:
    """One that needed all blocks, up to the `last`, goes on, here or away; one that left, or was drafted right, was
    mended at its tap."""
    return "escalate" if token.away else "continue_local" if token.block == last else "revive_local"


def needed(token: Token, lower: Decoder, upper: Decoder) -> int:
    """The last block, by its number in the whole model."""
    return numbers(upper)[-1] if token.away else numbers(lower)[token.block]


def described(heads: Bundle, token: Token, upper: Decoder | None = None) -> dict[str, Any]:
    """`regime` says whose token it is, that of `upper` where the peer made it; `mixing` how much each tap up to its own
    counted; `peer` what was spent on the call that made it."""
    last, seen, away = heads.decoder.config.num_layers - 1, token.seen, token.away
    upper = upper or heads.decoder
    vitality: Any = None if seen is None else mx.sigmoid(seen.told.told.vitality[seen.at]).item()
    mixing = None if seen is None or seen.told.weights is None else seen.told.weights[seen.at].tolist()
    concepts = (
        None if token.watched is None else list(dict.fromkeys(heads.asking.concepts(token.watched[None, None])[0]))
    )
    return {
        "token": token.id,
        "route": route(token, last),
        "block": needed(token, heads.decoder, upper),
        "regime": called(upper if away else heads.decoder),
        "vitality": None if vitality is None else round(vitality, 4),
        "mixing": None if mixing is None else [round(weight, 4) for weight in mixing],
        "concepts": concepts,
        "ms": milliseconds(token.seconds),
        "peer": None if away is None else spent(away),
        "fallen": token.fallen,
    }


def spent(on: Cost) -> dict[str, float]:
    return {"sent": on.sent, "received": on.received, "ms": milliseconds(on.seconds)}


def milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 2)
