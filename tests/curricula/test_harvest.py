"""Labels agree with a slow function that shares no code with theirs, and what is on disk goes on as the teacher did."""

import shutil
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from agp.batch import continued
from agp.generate import generate
from agp.sites import Site, skip
from curricula import oracle, recipes, runner
from curricula.documents import prompts
from curricula.features import Features
from curricula.observe import observe
from curricula.stages import harvest, rows
from curricula.teacher import teacher
from tests.curricula.run import smoke


@pytest.fixture(scope="module")
def root():
    return smoke()


@pytest.fixture(scope="module")
def loaded(root):
    return teacher(root / "domain")


def slow_logs(model, tokens, tap=None, without=None):
    """Of the next token after `tokens`: a document alone, no cache, float64 from the logits on."""
    visit = skip([Site(without, "block")]) if without is not None else skip([])
    stream = model.blocks(model.embed(mx.array([tokens])), stop=None if tap is None else tap + 1, visit=visit)
    logits = np.array(model.unembed(stream)[0, -1]).astype(np.float64)
    logits -= logits.max()
    return logits - np.log(np.exp(logits).sum())


def some_documents(features, count=4):
    return np.linspace(0, len(features.begins) - 1, count).astype(int)


@pytest.mark.parametrize("role", ["heads", "test"])
def test_labels_are_those_of_a_slow_function(role, root, loaded):
    features = Features(root / "harvest", role)
    names = ("divergence", "agrees", "margin", "doubt", "entropy", "taught", "taught_logs")
    stored = {name: features.whole(name) for name in names}
    for d in some_documents(features):
        ids, first = features.of(d, "ids").tolist(), features.of(d, "first")
        for k in range(first, len(ids)):
            at = features.begins[d] + k - first
            truth = slow_logs(loaded.model, ids[:k])
            best = np.argsort(-truth, kind="stable")[:64]
            np.testing.assert_allclose(stored["taught_logs"][at], truth[best], rtol=2e-3, atol=2e-3)
            assert stored["taught"][at, 0] == best[0]
            for t, tap in enumerate(features.taps):
                lens = slow_logs(loaded.model, ids[:k], tap)
                second, first_one = np.sort(lens)[-2:]
                told = [stored[name][at, t] for name in ("divergence", "margin", "doubt", "entropy")]
                share = np.exp(lens)
                doubt = np.log(max(np.delete(share, lens.argmax()).sum(), 1e-9))
                true = [(np.exp(truth) * (truth - lens)).sum(), first_one - second, doubt, -(share * lens).sum()]
                np.testing.assert_allclose(told, true, rtol=1e-3, atol=1e-4)
                assert stored["agrees"][at, t] == (lens.argmax() == truth.argmax())


def test_where_the_lens_is_all_but_sure_its_doubt_keeps_its_digits():
    """1 - share would have two of them, or none."""
    logits = np.zeros((3, 1, 40), np.float32)
    logits[np.arange(3), 0, [4, 5, 6]] = [12, 18, 40]
    total = np.exp(logits).sum(-1, keepdims=True)
    of = oracle.Said(mx.array(logits - np.log(total)), mx.array(np.exp(logits) / total))
    true = np.log(np.maximum(39 / (39 + np.exp(np.array([12.0, 18, 40]))), 1e-9))
    np.testing.assert_allclose(np.array(oracle.compared(of, of).doubt)[:, 0], true, rtol=1e-6)


def test_what_a_conversation_was_answered_is_what_generate_says(root, loaded):
    features = Features(root / "harvest", "test")
    stop = loaded.tokenizer.eos_ids
    asked = [d for d, about in enumerate(features.documents) if about["source"] != "source"]
    for d in asked[:: len(asked) // 4]:
        ids, first = features.of(d, "ids").tolist(), features.of(d, "first")
        steps = generate(loaded.model, ids[:first], max_tokens=recipes.smoke().harvest.answer, stop=stop)
        assert [step.token for step in steps] == ids[first:]


def test_prompts_continued_together_say_what_each_says_alone(loaded):
    prompts = [loaded.tokenizer.encode(text) for text in ("def f(x):", "a", "import os, sys\n\n\nclass A(")]
    together = continued(loaded.model, prompts, max_tokens=8, stop=(3,))
    for prompt, said in zip(prompts, together, strict=True):
        assert said == [step.token for step in generate(loaded.model, prompt, max_tokens=8, stop=(3,))]


@pytest.mark.parametrize("tap", range(4))
def test_blocks_go_on_from_what_is_on_disk_to_the_teachers_token(tap, root, loaded):
    features, model = Features(root / "harvest", "heads"), loaded.model
    right = total = 0
    for d in some_documents(features, 12):
        given = features.together([int(d), 0])  # beside another one
        start = features.taps[tap] + 1
        whole = model.embed(given.tokens, end=given.end, pad=given.pad)
        count = given.states.shape[2]
        stream = whole._replace(hidden=given.states[tap], inputs=whole.inputs[:, -count:], shared=given.shared)
        said = np.array(mx.argmax(model.unembed(model.blocks(stream, start=start)), axis=-1))
        taught = features.take("taught", given.places.reshape(-1))[:, 0].reshape(said.shape)
        right += int((said == taught)[given.chosen].sum())
        total += int(given.chosen.sum())
    assert right >= 0.98 * total  # 11 bits; off by one position, or one tap, next to nothing is right


def test_states_on_disk_are_those_of_the_document_alone(root, loaded):
    features = Features(root / "harvest", "tune")
    for d in some_documents(features, 3):
        ids, first = features.of(d, "ids").tolist(), features.of(d, "first")
        sites = [Site(tap, "block") for tap in features.taps]
        out = loaded.model([ids[:-1]], taps=sites)
        true = np.stack([np.array(out.hidden[site])[0, first - 1 :] for site in sites], axis=1)
        at = features.begins[d] + np.arange(len(ids) - first)
        error = np.abs(features.states(at) - true).max(-1) / np.abs(true).max(-1)
        assert error.max() < 1e-3


@pytest.mark.slow
def test_vitality_counts_what_survives_each_omission(root, loaded, tmp_path):
    """Without noise it is a count over blocks left out, which a slow function can take as well."""
    count = loaded.model.config.num_layers
    config = replace(recipes.smoke().harvest, noises=0, omissions=count, windows=(1, 1, 1, 1), taps=(8,))
    harvest.run(config, {"rows": root / "rows", "domain": root / "domain"}, tmp_path, None)
    features = Features(tmp_path, "tune")
    stored = features.whole("vitality")[:, 0]
    for d in some_documents(features, 3):
        ids, first = features.of(d, "ids").tolist(), features.of(d, "first")
        for k in range(first, len(ids)):
            token = slow_logs(loaded.model, ids[:k]).argmax()
            kept = [slow_logs(loaded.model, ids[:k], without=b).argmax() == token for b in range(9, count)]
            assert stored[features.begins[d] + k - first] == pytest.approx(np.mean(kept))


@pytest.mark.slow
@pytest.mark.parametrize("sigma, low, high", [(1e-6, 0.99, 1.0), (100.0, 0.0, 0.3)])
def test_a_state_survives_noise_that_is_nothing_and_not_noise_that_drowns_it(sigma, low, high, root, tmp_path):
    config = replace(recipes.smoke().harvest, sigma=sigma, noises=2, omissions=0, windows=(1, 1, 1, 1))
    harvest.run(config, {"rows": root / "rows", "domain": root / "domain"}, tmp_path, None)
    assert low <= Features(tmp_path, "test").whole("vitality").mean() <= high


def test_vitality_is_there_where_states_were_disturbed_and_nowhere_else(root):
    """Of what heads learn from, one shard in so many; never where thresholds are chosen."""
    vital, number = recipes.smoke().harvest.vital, 0
    met = set()
    for role in harvest.ROLES:
        for shard in Features(root / "harvest", role).shards:
            found = np.isfinite(shard["vitality"])
            wanted = role in ("tune", "test") or (role == "heads" and number % vital == 0)
            assert found.all() if wanted else not found.any(), (role, number)
            assert not found.any() or (shard["vitality"].min() >= 0 and shard["vitality"].max() <= 1)
            met.add((role, wanted))
            number += 1
    assert met == {("heads", True), ("heads", False), ("tune", True), ("calibrate", False), ("test", True)}


def test_all_that_is_not_disturbed_comes_out_the_same_without(root, loaded):
    config = recipes.smoke().harvest
    given = prompts(
        {name: of for name, of in rows.read(root / "rows", "tune").items() if name != rows.GENERAL},
        loaded.tokenizer,
        **harvest.cuts(config, "tune"),
    )
    part = harvest.shards({"tune": given}, 4)["tune-0000.safetensors"]
    with_it, without = (observe(config, loaded, [4, 8], part, 0, vital) for vital in (True, False))
    assert np.isfinite(with_it.pop("vitality")).all() and np.isnan(without.pop("vitality")).all()
    assert all(np.array_equal(with_it[name], of) for name, of in without.items())


def test_no_document_has_two_roles(root):
    homes = {}
    for role in rows.ROLES:
        for source, found in rows.read(root / "rows", role).items():
            for row in found:
                if source != rows.GENERAL:
                    assert homes.setdefault((source, row.document), role) == role


@pytest.mark.slow
def test_shards_that_a_kill_left_are_kept_and_the_rest_comes_out_the_same(root, tmp_path):
    for name in ("rows", "domain"):
        (tmp_path / name).symlink_to(root / name)
    shutil.copytree(root / "harvest", tmp_path / "harvest")
    (tmp_path / "harvest" / runner.MANIFEST).unlink()
    for name in ("heads-0001.safetensors", "test-0000.safetensors", "about.json"):
        (tmp_path / "harvest" / name).unlink()
    (tmp_path / "harvest/.heads-0001.safetensors.x.part.safetensors").write_bytes(b"half")
    kept = (tmp_path / "harvest/heads-0000.safetensors").stat().st_mtime_ns
    made = runner.run(recipes.stages(recipes.smoke()), tmp_path, say=lambda text: None)
    assert made["harvest"] == runner.read(root / "harvest")
    assert (tmp_path / "harvest/heads-0000.safetensors").stat().st_mtime_ns == kept


def test_a_base_without_its_adapter_is_refused(root, tmp_path):
    shutil.copytree(root / "domain", tmp_path / "domain")
    shutil.rmtree(tmp_path / "domain/adapter")
    with pytest.raises(ValueError, match="has no adapter.*Train the domain stage first"):
        harvest.run(recipes.smoke().harvest, {"rows": root / "rows", "domain": tmp_path / "domain"}, tmp_path, None)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"noises": 0, "omissions": 0}, "vitality needs some disturbance"),
        ({"windows": (1, 2)}, "a number for each of heads, tune, calibrate, test"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, said):
    (wrong,) = harvest.faults(replace(recipes.smoke().harvest, **change))
    assert said in wrong


@pytest.mark.parametrize(
    "taps, said",
    [
        ((2, 6), r"taps are \[2, 6\]; blocks from 4, the last that makes keys and values, to 10 are needed"),
        ((6, 4), "in rising order"),
        ((4, 11), "to 10 are needed"),
    ],
)
def test_taps_that_leave_a_hole_are_refused(taps, said, root):
    with pytest.raises(ValueError, match=said):
        harvest.chosen(replace(recipes.smoke().harvest, taps=taps), teacher(root / "domain").model)
