"""The depth stage compares what it should, each module beginning where the one before it ended."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from agp.losses import Sums
from agp.train import FitConfig
from curricula.features import Features
from curricula.mending import Mended
from curricula.stages.depth import OWN, inherit, measured, midway
from curricula.training import train
from heads import depth
from tests.curricula.run import smoke
from tests.toys import FIVE, toy


@pytest.mark.parametrize(
    "changes, blocks",
    [
        ({}, (4, 5)),
        ({"num_kv_shared_layers": 3}, (5, 4)),
        ({"num_hidden_layers": 10, "layer_types": FIVE * 2, "num_kv_shared_layers": 5}, (7, 9)),
    ],
)
def test_of_each_kind_the_block_midway_is_spared(changes, blocks):
    model = toy(**changes)
    found = midway(model)
    assert found == blocks and all(block >= model.config.num_producers for block in found)
    assert len({model.config.layer_types[block] for block in found}) == len(found)


def test_a_module_begins_as_the_one_a_tap_before_but_for_what_reads_the_taps():
    model = toy()
    one, two = (
        depth.Head(depth.Config(taps=taps, blocks=(4, 5), width=8), model) for taps in (1, 2)
    )  # fmt: skip
    one.update({name: mx.random.normal(a.shape) for name, a in one.parameters().items() if isinstance(a, mx.array)})
    one.down.weight = mx.random.normal(one.down.weight.shape)
    one.attention["full_attention"].q_proj.weight = mx.random.normal((64, 32))
    fresh = dict(tree_flatten(two.parameters()))
    inherit(two, one)
    before = dict(tree_flatten(one.parameters()))
    for name, array in tree_flatten(two.parameters()):
        assert mx.array_equal(array, fresh[name] if name in OWN else before[name]), name


def test_what_is_measured_is_the_share_of_the_teachers_tokens():
    test, rng = Features(smoke() / "harvest", "test"), np.random.default_rng(0)
    taps = len(test.taps)
    weights = [rng.dirichlet(np.ones(k % taps + 1), test.count) for k in range(2 * taps)]
    agrees = rng.random((test.count, 2 * taps)) < np.repeat([0.8, 0.5], taps)
    metrics, plots = measured(test, Mended(None, agrees, None, None, weights))
    for t, tap in enumerate(test.taps):
        ours, lens = agrees[:, t], agrees[:, taps + t]
        of = {name: metrics[name][str(tap)]["value"] for name in ("agreement", "tuned_lens", "lens", "gain")}
        assert of["agreement"] == pytest.approx(ours.mean()) and of["tuned_lens"] == pytest.approx(lens.mean())
        assert of["lens"] == pytest.approx(test.whole("agrees")[:, t].mean())
        assert of["gain"] == pytest.approx(ours.mean() - lens.mean())
        assert metrics["most"][str(tap)] == pytest.approx(weights[t].max(1).mean())
        assert metrics["moves"][str(tap)] == pytest.approx(weights[t].std(0).mean())
    lows = [metrics["gain"][str(tap)]["interval"][0] for tap in test.taps]
    assert metrics["gain_surely"] == min(lows) and metrics["gain_first"] == metrics["gain"]["4"]["value"]
    assert set(plots["weights"]["8"]) == {document["source"] for document in test.documents}


def test_what_a_module_costs_is_less_than_a_block():
    metrics = json.loads((smoke() / "depth/manifest.json").read_text())["metrics"]
    assert metrics["cost"] < 1 and list(metrics["macs"].values()) == sorted(metrics["macs"].values())
    first, last = metrics["macs"]["4"], metrics["macs"]["10"]
    assert last - first == 3 * 192  # three more taps to weigh


def trained(out, steps, held):
    """A number that goes from 3 downwards; `held` says how good it is."""
    head = nn.Linear(1, 1, bias=False)
    head.weight = mx.array([[3.0]])

    def loss(head, x) -> Sums:
        return mx.square(head(x)).sum(), mx.array(1.0)

    how = train(head, loss, lambda step, micro: (mx.ones((1, 1)),), FitConfig(steps=steps, rate=0.1, floor=1.0,
                evaluate_every=1), out, scores=lambda: {"loss": held(head.weight.item())},
                inputs={}, group=None)  # fmt: skip
    return head.weight.item(), how


def test_a_head_ends_with_its_best_weights_and_not_its_last(tmp_path):
    best, how = trained(tmp_path / "best", 20, lambda weight: abs(weight - 2.0))
    assert best == pytest.approx(2.0, abs=0.06) and 8 <= how["best_step"] <= 12 and how["parameters"] == 1
    last, how = trained(tmp_path / "last", 20, lambda weight: weight)
    assert last < 1.2 and how["best_step"] == 20
