"""Slopes are those of a slow function, bytes lead where the deployed path leads, and a broken head is stopped."""

import json
from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from agp.batch import continued
from agp.figures import met
from agp.sites import Site, plain
from agp.train import FitConfig, drawn
from curricula import oracle, recipes, runner
from curricula.features import Features
from curricula.onward import Onward, put, tokens_drawn
from curricula.payloads import followed, kept, sending, through
from curricula.stages import transfer as stage
from curricula.teacher import teacher
from heads import saved, transfer
from heads.codec import Integers, Raw
from tests.curricula.run import smoke

GATE = ">= 0.8"  # of the recipe, for tokens at a quarter of the bytes
CONFIG = stage.Config(
    ratios=(4, 8), measured=12, greedy=8, rows=64, fit=FitConfig(steps=4, rate=1e-3, evaluate_every=2, save_every=2)
)


@pytest.fixture(scope="module")
def root():
    return smoke()


@pytest.fixture(scope="module")
def model(root):
    return teacher(root / "domain").model


def needs(root):
    return {name: root / name for name in ("domain", "harvest")}


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("transfer")
    return stage.run(CONFIG, needs(root), out, None), out


def of(root, model, role="test", tap=4):
    return Onward(model, Features(root / "harvest", role), tap)


def everything(onward):
    return list(range(len(onward.features.begins)))


def test_what_was_measured_is_whole(made):
    metrics, out = made
    assert json.loads(json.dumps(metrics)) == metrics
    for name, raw in (("4x", 96), ("8x", 48)):
        assert 0.9 * raw < metrics[f"bytes_{name}"] <= raw
        low, high = metrics[f"next_agreement_{name}_interval"]
        assert 0 <= low <= metrics[f"next_agreement_{name}"] <= high <= 1
    assert metrics["greedy16_agreement_4x"] > 0.5 and metrics["tap"] == 4
    frontier = json.loads((out / "plots.json").read_text())["frontier"]
    assert frontier["raw"]["bytes"] == 384.25 and frontier["raw"]["agreement"] == 1
    wanted = {
        "raw",
        "int8",
        "int4",
        "int2",
        "one_byte",
        *(f"{a}_{n}x" for a in ("pca", "pca_token", "learned") for n in (4, 8)),
    }
    assert frontier.keys() == wanted and metrics["baselines"].keys() == wanted - {"learned_4x", "learned_8x"}
    assert (
        frontier["one_byte"]["bytes"] == 1.25
        and frontier["one_byte"]["agreement"] < frontier["learned_8x"]["agreement"]
    )
    for n in (4, 8):
        assert len({frontier[f"{a}_{n}x"]["bytes"] for a in ("pca", "pca_token", "learned")}) == 1


@pytest.mark.slow
def test_it_is_made_the_same_again_also_after_a_kill(root, made, tmp_path):
    assert stage.run(CONFIG, needs(root), tmp_path, None) == made[0]
    for name in (saved.FILE, saved.CONFIG):
        assert (tmp_path / "4x" / name).read_bytes() == (made[1] / "4x" / name).read_bytes()
    (tmp_path / "8x" / saved.FILE).unlink()  # killed between training and the last write
    assert stage.run(CONFIG, needs(root), tmp_path, None) == made[0]


def test_slopes_are_those_of_differences(root, model):
    """One document, for the tokens that were drawn; float32, so a long step."""
    onward = of(root, model)
    found = onward.sensitivity([3], seed=7)
    part = onward.part([3])
    states = onward.states(part.at)
    size = mx.sqrt(mx.square(states).mean(-1, keepdims=True))
    chances = np.random.default_rng(drawn(7)).random(onward.features.count)
    tokens = tokens_drawn(model, mx.array(onward.features.final(part.at)), chances[part.at])

    def logs(moved):
        shares = oracle.shares(model, onward.after(part, put(part, moved)))
        return np.array(mx.take_along_axis(shares, tokens[:, None], axis=-1)[:, 0]).astype(float)

    for seed in range(3):
        along = mx.random.normal((states.shape[-1],), key=mx.random.key(seed))
        step = 1e-2 * size * along
        slope = (logs(states + step) - logs(states - step)) / 2e-2
        way = np.array(along).astype(float)
        assert way @ found @ way == pytest.approx(np.square(slope).sum(), rel=0.02)


def test_two_hosts_sense_what_one_would(root, model, monkeypatch):
    """To the bit once it is in single precision: a closed form turns the smallest difference into other directions."""
    onward = of(root, model)
    monkeypatch.setattr("curricula.onward.TOGETHER", 2)
    shares = [onward.sensitivity(everything(onward), 1, slice(rank, None, 2)) for rank in range(2)]
    assert np.array_equal(np.float32(sum(shares)), np.float32(onward.sensitivity(everything(onward), 1)))
    assert not np.array_equal(shares[0], shares[1])


def test_a_token_is_drawn_by_position_whatever_else_is_read(root, model):
    onward = of(root, model)
    shares = [onward.sensitivity(some, seed=1) for some in ([0, 2, 4], [1, 3])]
    np.testing.assert_allclose(sum(shares), onward.sensitivity([0, 1, 2, 3, 4], seed=1), rtol=1e-3, atol=1e-4)


def test_tokens_are_drawn_by_their_shares(root, model):
    final = mx.array(of(root, model).features.final(np.array([0])))
    shares = np.exp(np.array(oracle.shares(model, final)[0]))
    many = mx.broadcast_to(final, (4000, final.shape[-1]))
    tokens = np.array(tokens_drawn(model, many, np.random.default_rng(0).random(4000)))
    found = np.bincount(tokens, minlength=len(shares)) / len(tokens)
    assert np.abs(found - shares).max() < 0.04 and shares.max() < 0.9


def test_a_raw_state_leads_to_the_teachers_token_everywhere_and_a_stranger_does_not(root, model):
    onward = of(root, model)
    ways = [lambda states, told: states, lambda states, told: states[::-1]]
    at, agrees, divergence = onward.read(everything(onward), ways)
    assert sorted(at) == list(range(onward.features.count))
    assert agrees[:, 0].mean() > 0.99 and divergence[:, 0].max() < 1e-3
    assert agrees[:, 1].mean() < 0.5


def test_the_token_of_each_position_is_the_one_that_stands_there(root, model):
    onward = of(root, model, "tune")
    features = onward.features
    for d in (0, len(features.begins) - 1):
        ids, first = features.of(d, "ids"), features.of(d, "first")
        for k in range(len(ids) - first):
            assert onward.tokens[features.begins[d] + k] == ids[first + k - 1]
    at = np.array([0, 5, 2])
    for vector, token in zip(onward.told(at), onward.tokens[at], strict=True):
        assert mx.allclose(vector, model.embed_tokens(mx.array([int(token)]))[0] * model.config.hidden_size**0.5)


def test_what_follows_is_the_teachers_exactly_where_the_next_token_is(root, model):
    """Through the deployed path, cache and all, beside what was read from the harvest: two bits a value, so some are
    not the same."""
    onward = of(root, model)
    codec = Integers(192, 2, 32)
    asked = [d for d, about in enumerate(onward.features.documents) if about["source"] != "source"]
    at, agrees, _ = onward.read(asked, [partial(through, codec)])
    right = dict(zip(at.tolist(), agrees[:, 0].tolist(), strict=True))
    same = followed(codec, onward, asked, 16)
    assert same.tolist() == [right[begin] for begin in onward.features.begins[asked]]
    assert 0 < same.mean() < 1
    assert followed(Raw(192), onward, asked[:8], 16).all()


def test_only_the_last_state_is_sent(root, model):
    """Keys and values are as they were, and so is every other position."""
    prompts = [[2, 50, 60, 70, 80], [2, 9, 8]]
    told = mx.zeros((2, 192))
    x = mx.random.normal((2, 5, 192), key=mx.random.key(0))
    codec = Integers(192, 2, 32)
    visit = sending(codec, 4, told)
    out = visit(Site(4, "block"), lambda x: x, x)
    assert mx.array_equal(out[:, :-1], x[:, :-1]) and not mx.array_equal(out[:, -1], x[:, -1])
    assert mx.array_equal(out[:, -1], codec.unpack(codec.pack(x[:, -1], told), told))
    assert mx.array_equal(visit(Site(3, "block"), lambda x: x, x), x)
    assert continued(model, prompts, max_tokens=4, visit=plain) == continued(model, prompts, max_tokens=4)


@pytest.mark.parametrize("broken", ["zero", "constant", "shuffled"])
def test_a_broken_head_does_not_pass_the_gate(broken, root, model, made):
    onward = of(root, model)
    head = saved.load(made[1] / "4x", transfer.Config, transfer.Head)
    assert met(agreement(head, onward), GATE)
    if broken == "zero":
        head.synthesis.weight = mx.zeros_like(head.synthesis.weight)
    elif broken == "constant":
        head.analysis.weight = mx.zeros_like(head.analysis.weight)
    else:
        head.synthesis.weight = head.synthesis.weight[:, ::-1]
    assert not met(agreement(head, onward), GATE)


def agreement(head, onward):
    return float(kept({"it": head}, onward, everything(onward)).columns["it"][0].mean())


@pytest.mark.slow
def test_four_streams_are_sent_together(tmp_path):
    recipe = recipes.smoke()
    recipe = replace(recipe, domain=replace(recipe.domain, model="tiny-gemma3n"))
    runner.run(recipes.stages(recipe), tmp_path, until="harvest", say=lambda text: None)
    metrics = stage.run(replace(CONFIG, ratios=(4,)), needs(tmp_path), tmp_path / "transfer", None)
    head = saved.load(tmp_path / "transfer/4x", transfer.Config, transfer.Head)
    model = teacher(tmp_path / "domain").model
    assert head.config.width == 4 * model.config.hidden_size and head.config.told == model.config.hidden_size
    assert metrics["baselines"]["raw"]["agreement"] > 0.98
    assert metrics["next_agreement_4x"] > 0.5


@pytest.mark.parametrize(
    "change, said",
    [
        ({"tap": 5}, "tap is 5; states are kept after blocks 4, 6"),
        ({"ratios": (8, 4)}, "whole numbers of 2 or more in rising order"),
        ({"ratios": ()}, "ratios are"),
        ({"ratios": (4, 400)}, "of a state of 384 bytes the last leaves none"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, said):
    (wrong,) = stage.faults(replace(CONFIG, **change), [4, 6], 192)
    assert said in wrong
