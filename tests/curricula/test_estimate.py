"""What is estimated is what is found: bytes on disk to a hundredth, memory from above and not far above."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from agp.footprint import SHAPES
from agp.macs import macs
from agp.models.folder import build, stated
from agp.models.known import KNOWN
from curricula import estimate, estimate_heads, oracle, recipes
from curricula.documents import Prompt
from curricula.features import Features
from curricula.observe import observe
from curricula.stages import harvest, rows
from tests.curricula.run import smoke
from tests.toys import random_weights

SMALL = {
    "num_hidden_layers": 10,
    "num_kv_shared_layers": 5,
    "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 2,
    "num_attention_heads": 4,
    "head_dim": 64,
    "global_head_dim": 128,
    "hidden_size_per_layer_input": 32,
}


def middling(name: str, hidden: int, words: int) -> dict[str, Any]:
    """Between toy and full size."""
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "vocab_size": words}
    return KNOWN[name] | SMALL | sizes | {"vocab_size_per_layer_input": words}


def text_of(features: Features) -> estimate.Text:
    firsts = features.whole("first")
    return estimate.Text(len(firsts), int(firsts.sum()), features.count, int(firsts.max()))


def test_the_disk_of_a_run_is_what_the_estimate_says():
    recipe, folder = recipes.smoke(), smoke() / "harvest"
    model, taps = estimate.shaped(stated(recipe.domain.model)[0], None), len(recipe.harvest.taps)
    for role in harvest.ROLES:
        said = estimate.text_bytes(recipe.harvest, model, taps, text_of(Features(folder, role)), role)
        found = sum(path.stat().st_size for path in folder.glob(f"{role}-*.safetensors"))
        documents = len(Features(folder, role).begins)
        assert said - estimate.ABOUT * documents == pytest.approx(found, rel=0.02)
    whole = estimate.Work({role: text_of(Features(folder, role)) for role in harvest.ROLES}, 0, 0, "")
    cost = estimate.harvest_cost(recipe.harvest, model, whole, 0.0, 4)
    files = [path for path in folder.iterdir() if path.name == "about.json" or path.suffix == ".safetensors"]
    assert cost.disk == pytest.approx(sum(path.stat().st_size for path in files), rel=0.02)


def test_rows_say_beforehand_how_much_will_be_observed():
    recipe = recipes.smoke()
    given, before = {role: rows.read(smoke() / "rows", role) for role in rows.ROLES}, rows.understood(recipe.rows)
    digests = [{s: [row.digest for row in of] for s, of in found["test"].items()} for found in (given, before)]
    assert digests[0] == digests[1]
    work = estimate.counted(recipe, given, letters=2.5)
    for role in harvest.ROLES:
        found, said = text_of(Features(smoke() / "harvest", role)), work.roles[role]
        assert said.documents == found.documents
        assert said.prompts == pytest.approx(found.prompts, rel=0.25)


def test_no_more_conversations_than_asked_for():
    recipe = recipes.smoke()
    given = {role: rows.read(smoke() / "rows", role) for role in rows.ROLES}
    few = replace(recipe, harvest=replace(recipe.harvest, turns=(3, 1, 1, 1), windows=(0, 0, 0, 0)))
    assert estimate.counted(few, given, 2.5).roles["heads"].documents == 3 * 3  # conversation, code, memory


FAMILIES = ["google/gemma-4-E2B-it", "google/gemma-3n-E2B-it"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shard_takes_the_memory_and_makes_the_bytes_that_are_estimated(name):
    model: Any = build(middling(name, 128, 2048))
    random_weights(model)
    few = {"taps": (4, 7), "longest": 256, "answer": 8, "shard": 16, "together": 16, "noises": 1, "omissions": 1}
    config = replace(recipes.gemma4_e2b().harvest, **few)
    rng = np.random.default_rng(0)
    ids = [tuple(rng.integers(1, 2048, config.longest).tolist()) for _ in range(config.shard)]
    loaded: Any = SimpleNamespace(model=model, tokenizer=SimpleNamespace(eos_ids=()))
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    made = observe(config, loaded, config.taps, [Prompt("a", "a", i, False, {}) for i in ids], 0, True)
    found = mx.get_peak_memory() - held
    text = estimate.Text(config.shard, config.shard * config.longest, config.shard * config.answer, config.longest)
    cost = estimate.harvest_cost(config, model, estimate.Work({"heads": text}, 0, 0, ""), 0.0, 4)
    assert cost.disk - estimate.ABOUT * config.shard == sum(a.nbytes for a in made.values())
    assert found < cost.memory < 1.5 * found


def measured(compute) -> int:
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(compute())
    return mx.get_peak_memory() - held


@pytest.mark.slow
def test_disturbances_and_the_lens_never_make_more_logits_than_there_is_room_for(monkeypatch):
    """Of four times as many: all at once they would take 512 MB an array."""
    model: Any = build(middling(FAMILIES[0], 16, 1 << 16) | {"num_attention_heads": 1, "head_dim": 16})
    random_weights(model)
    monkeypatch.setattr(oracle, "ROOM", oracle.MOST)
    room, rows_, count = 4 * oracle.MOST, 32, 64
    states = mx.random.normal((rows_, count, 16))
    whole = model.embed(mx.ones((rows_, count), mx.int32))
    stream = model.blocks(whole, stop=5)._replace(hidden=states)
    mx.eval(stream.hidden, stream.inputs, list(stream.shared.values()))
    tokens = mx.zeros((rows_, count), mx.int32)
    how = {"sigma": 0.5, "noises": 1, "omissions": 1, "key": mx.random.key(0)}
    assert measured(lambda: oracle.vitality(model, stream, 8, tokens, **how)) < 1.3 * room
    flat = states.flatten(0, 1)[:1024]
    assert measured(lambda: oracle.read(model, flat[:, None], flat, 8)) < estimate.READ * room


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_full_size_shapes_are_counted_without_their_weights(shape):
    model = build(KNOWN[f"google/{shape.name.replace('Gemma ', 'gemma-').replace(' ', '-')}-it"])
    parameters: Any = tree_flatten(model.parameters())
    count = {name: a.size for name, a in parameters if not name.endswith("layer_scalar")}
    assert count.pop("embed_tokens.weight") == shape.embeddings
    assert count.pop("embed_tokens_per_layer.weight") == shape.per_layer
    assert sum(count.values()) == shape.parameters
    lean = estimate.weights(model, 2, table_on_disk=True)
    assert lean == pytest.approx(shape.weights("bf16", table_on_disk=True), rel=1e-4)


def test_e2b_in_4_bits_with_its_table_on_disk():
    model = estimate.shaped(KNOWN["google/gemma-4-E2B-it"], 4)
    assert estimate.on_disk(model, None, 12.7e9) and not estimate.on_disk(model, None, 24e9)
    assert not estimate.on_disk(model, "memory", 1e9)
    known = next(shape for shape in SHAPES if shape.name == "Gemma 4 E2B")
    found = estimate.weights(model, 2, table_on_disk=True)
    assert 1 < found / known.weights("4 bits", table_on_disk=True) < 1.1  # small linears keep their 16 bits
    assert estimate.token_bytes(model) == 3072  # blocks 13 and 14


def test_the_work_of_the_domain_stage_grows_with_its_tokens():
    recipe = recipes.gemma4_e2b()
    model = estimate.shaped(KNOWN[recipe.domain.model], 4)
    none = estimate.Work({}, 0, 0, "")
    cost = estimate.domain_cost(recipe.domain, model, none, 0.0, 2)
    tokens = 400 * 4096
    assert cost.macs / tokens == pytest.approx(3 * 1.88e9 + 2 * 0.403e9, rel=0.03)
    longer = replace(recipe.domain, length=1024)
    assert estimate.domain_cost(longer, model, none, 0.0, 2).macs == pytest.approx(
        2 * cost.macs, rel=0.03
    )  # it attends to more
    assert estimate.domain_cost(longer, model, none, 0.0, 2).memory > cost.memory


@pytest.mark.parametrize("name", ["gemma4_e2b", "gemma3n_e2b", "gemma4_e4b"])
def test_the_big_recipes_fit_a_mac_with_16_gb(name):
    recipe = getattr(recipes, name)()
    model = estimate.shaped(KNOWN[recipe.domain.model], recipe.domain.quantize)
    work = estimate.assumed(recipe)
    costs = estimate.costs(recipe, model, work, 12.7e9, 2)
    assert sum(cost.disk for cost in costs.values()) < 20e9
    costs |= estimate_heads.costs(recipe, model, work, 12.7e9, 2)
    assert costs.keys() == {stage.name for stage in recipes.stages(recipe)} - {"rows"}
    assert max(cost.memory for cost in costs.values()) < 0.85 * 12.7e9
    assert sum(cost.disk for cost in costs.values()) < 30e9
    modules = estimate_heads.modules(recipe, estimate_heads.given(recipe, model, work, 12.7e9, 2))
    cheapest = min(macs(model).blocks[model.config.num_producers :])
    assert max(module.macs for module in modules) < cheapest  # as the gate asks
    taps = harvest.chosen(recipe.harvest, model)
    assert recipe.semantic.tap in taps


# A run of `tiny` on two cores: documents and positions by role; of each stage seconds, the peak where as many logits
# are there at once as would fill a GPU, and bytes on disk.
COUNTS = {"heads": (3120, 43_938), "tune": (600, 6611), "calibrate": (1860, 20_040), "test": (1100, 12_020)}
FOUND = {
    "trajectory": (26, 93e6, 2.00e6),
    "semantic": (44, 420e6, 6.12e6),
    "depth": (101, 390e6, 42.6e6),
    "transfer": (50, 463e6, 5.35e6),
    "calibrate": (53, 235e6, 0.52e6),
}
IN_NUMPY = {"trajectory": 4.5, "calibrate": 2}  # its arrays are no part of MLX's peak


def of_tiny() -> dict[str, estimate.Cost]:
    recipe = recipes.tiny()
    roles = {role: estimate.Text(d, 45 * d, n, 120) for role, (d, n) in COUNTS.items()}
    model = estimate.shaped(stated(recipe.domain.model)[0], None)
    return estimate_heads.costs(recipe, model, estimate.Work(roles, 0, 0, ""), 12e9, 4)


@pytest.mark.parametrize("name", FOUND)
def test_head_stages_take_what_was_found_of_a_run(name):
    """Memory from above, and disk: the calibrated head keeps its first layers frozen, so its states are smaller."""
    _, peak, disk = FOUND[name]
    cost = of_tiny()[name]
    assert 0.99 * peak < cost.memory < IN_NUMPY.get(name, 1.5) * peak
    assert 0.95 * disk < cost.disk < (3.5 if name == "calibrate" else 1.15) * disk


def test_all_head_stages_multiply_about_as_fast():
    """Within a factor of four: what each of them does beside that takes time as well."""
    rates = [of_tiny()[name].macs / seconds for name, (seconds, *_) in FOUND.items()]
    assert max(rates) < 4 * min(rates)


def test_heads_take_more_where_more_is_asked_of_them():
    recipe, before = recipes.gemma4_e2b(), recipes.gemma4_e2b()
    model = estimate.shaped(KNOWN[recipe.domain.model], 4)
    changes = {
        "trajectory": {"glance": 8192},
        "semantic": {"width": 24_576},
        "depth": {"width": 4096},
        "transfer": {"ratios": (2, 4, 8, 16)},
    }
    for name, change in changes.items():
        recipe = replace(recipe, **{name: replace(getattr(recipe, name), **change)})
    found = [estimate_heads.costs(of, model, estimate.assumed(of), 12.7e9, 2) for of in (before, recipe)]
    for name in changes:
        less, more = (costs[name] for costs in found)
        assert less.macs < more.macs and less.disk < more.disk and less.memory <= more.memory, name
