"""Multiplications a token, held against what is published of E2B, and against products counted one by one."""

import pytest

from agp.adapters import attach
from agp.macs import macs
from agp.models import gemma4
from agp.models.known import KNOWN
from agp.targets import design
from tests.toys import FAMILIES, toy

E2B = KNOWN["google/gemma-4-E2B-it"]


def test_e2b_costs_what_is_published():
    found = macs(gemma4.Model(gemma4.Config.from_dict(E2B)))  # its weights are never made
    assert sum(found.blocks[:15]) / 1e6 == pytest.approx(563.9, abs=0.1)
    assert sum(found.blocks[15:]) / 1e6 == pytest.approx(1299.2, abs=0.1)
    assert found.head / 1e6 == pytest.approx(402.7, abs=0.1)
    assert found.inputs / 1e6 == pytest.approx(13.8, abs=0.1)
    assert found.whole / 1e6 == pytest.approx(2279.5, abs=0.3)
    assert (found.upto(15) + found.head) / found.whole == pytest.approx(0.430, abs=0.001)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_grows_with_the_context_up_to_the_window(family):
    model = toy(family)
    config, far = model.config, 10_000
    near, wide = macs(model), macs(model, far)
    for i, (a, b) in enumerate(zip(near.blocks, wide.blocks, strict=True)):
        heads = model.layers[i].self_attn.q_proj.weight.shape[0]
        assert b - a == 2 * heads * min(far, config.window(i) or far)
    assert (near.inputs, near.head) == (wide.inputs, wide.head)


def test_an_adapter_changes_nothing():
    model = toy("gemma4")
    before = macs(model)
    attach(model, design(model, "all", rank=2))
    assert macs(model) == before
