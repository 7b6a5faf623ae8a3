"""What a model can do, document by document: how much of a text it foresees, and at what loss."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from agp.language import look_up, states
from agp.losses import NO_CAP, surprise
from agp.models.decoder import Decoder
from agp.packing import assemble
from agp.supervise import Example

ROWS = 16  # at once
FEW = 128  # positions whose logits are there at once


def ability(model: Decoder, examples: Sequence[Example]) -> np.ndarray:
    """Of each: tokens foreseen, the loss summed, and how many tokens there are."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    found = np.zeros((len(examples), 3))
    for at in range(0, len(order), ROWS):
        batch = assemble([[examples[i]] for i in order[at : at + ROWS]])
        hidden = states(model, look_up(model, batch), 0, False)
        row = batch.where // batch.tokens.shape[1]
        for few in range(0, len(row), FEW):
            right, lost = judged(model, hidden[few : few + FEW], mx.array(batch.targets[few : few + FEW]))
            weight = batch.weights[few : few + FEW]
            told = np.stack([right * weight, lost * weight, weight], axis=1)
            np.add.at(found, np.array(order[at : at + ROWS])[row[few : few + FEW]], told)
    return found


def judged(model: Decoder, hidden: mx.array, targets: mx.array) -> tuple[np.ndarray, np.ndarray]:
    uncapped = model.uncapped(model.normed(hidden[None]))[0]
    cap = mx.array(model.config.final_logit_softcapping or NO_CAP)
    lost: Any = surprise(uncapped, targets[:, None], cap)
    return np.array(mx.argmax(uncapped, axis=-1) == targets), np.array(lost[0].astype(mx.float32))
