"""The recipes: the big ones are the small one with other settings, and every setting fits the model it is for."""

from dataclasses import fields, replace

import pytest

from agp.models.folder import build
from agp.models.known import KNOWN
from curricula import recipes, runner
from curricula.recipes import Recipe
from curricula.stages import domain, harvest

BIG = {"gemma4_e2b": (35, 15), "gemma3n_e2b": (30, 20), "gemma4_e4b": (42, 24)}  # blocks, and those that make keys


def named(name: str) -> Recipe:
    return getattr(recipes, name)()


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_can_be_run_in_its_order_and_its_gates_are_of_its_stages(name):
    stages = recipes.stages(named(name))
    runner.check(stages)
    assert set(named(name).gates) <= {stage.name for stage in stages}
    assert [stage.name for stage in stages] == [stage.name for stage in recipes.stages(recipes.tiny())]


@pytest.mark.parametrize("name", BIG)
def test_the_big_ones_differ_in_settings_alone(name):
    for field in fields(Recipe):
        assert type(getattr(named(name), field.name)) is type(getattr(recipes.tiny(), field.name))
    assert [stage.run for stage in recipes.stages(named(name))] == [s.run for s in recipes.stages(recipes.tiny())]


@pytest.mark.parametrize("name", BIG)
def test_taps_begin_at_the_last_producer_and_one_is_near_the_local_budget(name):
    recipe, (count, producers) = named(name), BIG[name]
    model = build(KNOWN[recipe.domain.model])  # its weights are never made
    assert (model.config.num_layers, model.config.num_producers) == (count, producers)
    taps = harvest.chosen(recipe.harvest, model)
    assert taps[0] == producers - 1 and len(taps) >= 4
    depths = [(tap + 1) / count for tap in taps]
    local = min(depths, key=lambda depth: abs(depth - 0.7))
    assert abs(local - 0.7) < 0.02 and local > depths[0]


@pytest.mark.parametrize("name", BIG)
def test_settings_are_sound_but_for_the_rows_that_only_a_user_has(name):
    recipe = named(name)
    assert harvest.faults(recipe.harvest) == []
    assert domain.faults(replace(recipe.domain, data={"mine": "somewhere"})) == []
    assert not recipe.rows.data and not recipe.rows.made


@pytest.mark.parametrize("name", BIG)
def test_one_source_of_conversations_is_enough_for_the_gates(name):
    """Where every document is answered at length."""
    recipe = named(name)
    *_, calibrate, test = recipe.harvest.turns
    gate = recipe.gates["harvest"]
    assert calibrate >= float(gate["calibrate_documents"].split()[-1])
    assert test * recipe.harvest.answer >= float(gate["test_positions"].split()[-1])


def test_taps_below_the_last_producer_of_a_big_model_are_refused():
    recipe = recipes.gemma4_e2b()
    with pytest.raises(ValueError, match=r"taps are \[9, 14\]; blocks from 14, the last that makes keys and values"):
        harvest.chosen(replace(recipe.harvest, taps=(9, 14)), build(KNOWN[recipe.domain.model]))


def test_e4b_comes_after_e2b():
    assert recipes.gemma4_e4b().after == "gemma4_e2b" and not recipes.gemma4_e2b().after
