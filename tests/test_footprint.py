"""The sizes the doctor counts with are those of the architecture, counted again on transformers' classes."""

from typing import Any

import pytest

from agp.footprint import GB, SHAPES, Shape

SHAPE = {shape.name: shape for shape in SHAPES}


@pytest.mark.parametrize(
    "bits, whole, lean",
    [("bf16", 9.26, 4.56), ("8 bits", 4.92, 2.42), ("4 bits", 2.60, 1.28)],
)
def test_weights_of_e2b(bits, whole, lean):
    shape = SHAPE["Gemma 4 E2B"]
    assert shape.weights(bits, table_on_disk=False) / GB == pytest.approx(whole, abs=0.01)
    assert shape.weights(bits, table_on_disk=True) / GB == pytest.approx(lean, abs=0.01)


def test_the_cache_grows_slower_beyond_the_window():
    shape = SHAPE["Gemma 4 E2B"]
    assert shape.cache(1) == 18_432
    assert shape.cache(513) - shape.cache(512) == 6_144


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_longest_context_is_the_longest(shape: Shape):
    room = shape.cache(20_000)
    assert shape.cache(shape.longest(room)) <= room < shape.cache(shape.longest(room) + 2)
    assert shape.longest(1e15) == shape.context
    assert shape.longest(-1) == shape.longest(1000) == 0


def test_a_training_step_without_room_holds_no_row():
    assert SHAPE["Gemma 4 E2B"].rows(0) == 0 < SHAPE["Gemma 4 E2B"].rows(8 * GB)


def config_of(shape: Shape) -> Any:
    from transformers import Gemma3nTextConfig, Gemma4TextConfig

    every = 6 if shape.name == "Gemma 4 E4B" else 5  # each n-th layer attends to everything
    common: dict[str, Any] = dict(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_kv_shared_layers=shape.layers - shape.sliding - shape.full,
        num_key_value_heads=shape.kv_width // 256,
        layer_types=["sliding_attention" if (i + 1) % every else "full_attention" for i in range(shape.layers)],
    )
    if "3n" in shape.name:
        sparse = [0.95] * 10 + [0.0] * (shape.layers - 10)
        widths = [shape.mlp] * shape.layers
        return Gemma3nTextConfig(intermediate_size=widths, activation_sparsity_pattern=sparse, **common)
    double = shape.name == "Gemma 4 E2B"
    return Gemma4TextConfig(intermediate_size=shape.mlp // (1 + double), use_double_wide_mlp=double, **common)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_transformers_counts_the_same(shape: Shape):
    import torch
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextModel
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextModel

    config = config_of(shape)
    with torch.device("meta"):
        model = (Gemma3nTextModel if "3n" in shape.name else Gemma4TextModel)(config)
    count = {name: tensor.numel() for name, tensor in model.named_parameters()}
    assert count.pop("embed_tokens.weight") == shape.embeddings
    assert count.pop("embed_tokens_per_layer.weight") == shape.per_layer
    assert sum(count.values()) == shape.parameters
    kinds = config.layer_types[: config.num_hidden_layers - config.num_kv_shared_layers]
    assert (kinds.count("sliding_attention"), kinds.count("full_attention")) == (shape.sliding, shape.full)
