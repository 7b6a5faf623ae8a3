"""coremltools computes single operations as our evaluation does; where ours is broken it says so."""

import numpy as np
import pytest

from export import evaluate, inference
from export.sample import Part
from tests.export import operations


@pytest.fixture(scope="module")
def parts():
    return {"main": Part([operations.feeds()], [8], {}, {})}


def test_all_that_it_knows_is_as_it_is_here(program, parts):
    found = inference.checked(program, parts)
    assert found.passed and found.told.endswith("not known: 3 conv")


BROKEN = {
    "gelu": lambda g: g["x"] / (1 + np.exp(-1.702 * g["x"])),
    "layer_norm": lambda g: g["x"] / np.sqrt(np.square(g["x"]).mean(1, keepdims=True) + g["epsilon"]) * 1.0001,
    "round": lambda g: np.floor(g["x"] + 0.5) + 0.25,
    "softmax": lambda g: np.exp(g["x"]) / np.exp(g["x"]).sum(-1, keepdims=True),
    "slice_by_index": lambda g: np.roll(evaluate.cut(g), 1, axis=1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_operation_that_is_broken_here_is_named(name, program, parts, monkeypatch):
    monkeypatch.setitem(evaluate.OPS, name, BROKEN[name])
    found = inference.checked(program, parts)
    assert not found.passed and f", a {name};" in found.told
