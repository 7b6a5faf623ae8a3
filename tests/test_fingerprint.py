"""One digest of all weights: equal for the same, wherever the table lies; another for any other number."""

import mlx.core as mx

import agp
from agp.fingerprint import fingerprint
from tests.launch import MODELS
from tests.toys import toy


def test_it_is_of_the_weights_alone():
    folder = MODELS["gemma4"]
    known = fingerprint(agp.load(folder).model)
    assert known == fingerprint(agp.load(folder, table="disk").model)
    assert known != fingerprint(agp.load(folder, dtype="float32").model)
    assert known != fingerprint(agp.load(folder, quantize=4).model)


def test_any_number_changes_it():
    """Seen to fail with names and shapes alone."""
    model = toy("gemma4")
    known = fingerprint(model)
    for module, name in (
        (model.layers[3].mlp.up_proj, "weight"),
        (model.norm, "weight"),
        (model.embed_tokens_per_layer, "weight"),
    ):
        before = module[name]
        module[name] = before + (mx.arange(before.size) == before.size - 1).reshape(before.shape) * 1e-3
        assert fingerprint(model) != known
        module[name] = before
    assert fingerprint(model) == known
