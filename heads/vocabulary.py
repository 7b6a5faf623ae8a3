"""Some rows of the model's head: where a question needs no more than part of the vocabulary."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from agp.layers import soft_cap
from agp.models.decoder import Decoder


def rows(decoder: Decoder, ids: mx.array) -> mx.array:
    """V D, in full precision."""
    head: Any = decoder.embed_tokens if decoder.config.tie_word_embeddings else decoder.lm_head
    if not isinstance(head, nn.QuantizedLinear | nn.QuantizedEmbedding):
        return head.weight[ids].astype(mx.float32)
    scales, biases = (head[name][ids].astype(mx.float32) for name in ("scales", "biases"))
    return mx.dequantize(head.weight[ids], scales, biases, head.group_size, head.bits)


def logits(normed: mx.array, rows: mx.array, cap: float | None) -> mx.array:
    """Of these tokens alone."""
    found = normed.astype(mx.float32) @ rows.T
    return found if cap is None else soft_cap(found, mx.array(cap))
