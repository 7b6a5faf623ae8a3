"""A smaller regime below a block and a larger one above it: what one made there, the other can go on with.

Both are views of one model and have its streams, and both borrow keys and values of the same blocks, so shapes fit.
What comes out is the word of neither alone: the larger one would have made other keys and values. Blocks are called by
their numbers in the whole model, which both know.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

from agp.models.decoder import Decoder
from agp.models.gemma3n import Config
from agp.regimes import Nested, Regime, nested

WHOLE = "whole"  # the label of a model that nothing is left out of


def whole_of(model: Decoder) -> Decoder:
    whole: Any = model.whole if isinstance(model, Nested) else model
    return whole


def numbers(model: Decoder) -> tuple[int, ...]:
    """Of its blocks in the whole model."""
    return model.kept if isinstance(model, Nested) else tuple(range(model.config.num_layers))


def above(model: Decoder, block: int) -> int:
    """The first of its own blocks that stands above this one."""
    return bisect_right(numbers(model), block)


def label(model: Decoder) -> str:
    """The name of its regime, and a digest of what that is."""
    if not isinstance(model, Nested) or model.config == model.whole.config:
        return WHOLE
    return f"{model.name} {hashlib.sha256(f'{model.kept} {model.config}'.encode()).hexdigest()}"


def called(model: Decoder) -> str:
    return model.name if isinstance(model, Nested) else WHOLE


def unfit(lower: Decoder, upper: Decoder, block: int) -> list[str]:
    """Why `upper` cannot go on with what `lower` made up to this block."""
    if upper.identity is not lower.identity:
        return ["they are of two models"]
    wrong, least = [], max(numbers(model)[model.config.num_producers - 1] for model in (lower, upper))
    known = [n for n in numbers(lower) if least <= n < numbers(upper)[-1]]
    if block not in known:
        wrong.append(f"states cannot be sent after block {block}; after {', '.join(map(str, known))} they can")
    if not borrowed(upper).items() <= borrowed(lower).items():
        wrong.append(f"above, keys and values of blocks {borrowed(upper)} are read; below there are {borrowed(lower)}")
    if not larger(upper, lower):
        wrong.append("above there have to be the blocks of below, as wide or wider, and otherwise the same")
    return wrong


def smaller(upper: Decoder, regimes: Mapping[str, Regime]) -> list[Nested]:
    """Those of them whose states `upper` can go on with, as views."""
    found, least = [], numbers(upper)[upper.config.num_producers - 1]
    for name, regime in regimes.items():
        try:
            lower = nested(whole_of(upper), regime, name)
        except ValueError:  # it needs keys and values that this model was loaded without
            continue
        if label(lower) != label(upper) and not unfit(lower, upper, least):
            found.append(lower)
    return found


def borrowed(model: Decoder) -> dict[str, int]:
    """By type of layer, whose keys and values are read by others."""
    return {model.config.layer_types[i]: numbers(model)[i] for i in model.config.lenders}


def larger(upper: Decoder, lower: Decoder) -> bool:
    """Or as large."""
    if label(upper) == label(lower):
        return True
    there, here = (dict(zip(numbers(of), blocks(of.config), strict=True)) for of in (upper, lower))
    wider = all(
        n in there and there[n][0] == sparsity and there[n][1] >= width for n, (sparsity, width) in here.items()
    )
    return wider and upper.config.altup_correct_scale == lower.config.altup_correct_scale


def blocks(config: Config) -> Iterable[tuple[float, int]]:
    return zip(config.sparsity, config.widths, strict=True)
