"""Heads on kept states beside states made again: both sides are fed the same, and a difference would be noticed."""

import json
from argparse import ArgumentParser
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from agp.figures import entries
from agp.fuse import fuse
from curricula import mending, recipes
from curricula.features import Features
from curricula.teacher import teacher
from scripts.bench import curriculum, heads, heads_drawn, heads_fed
from tests.curricula.run import smoke


@cache
def fed():
    loaded, features = teacher(smoke() / "domain"), Features(smoke() / "harvest", "heads")
    fuse(loaded.model)
    return heads_fed.cases(smoke(), recipes.smoke(), loaded, features), features


@pytest.mark.parametrize("name", heads.HEADS)
def test_both_sides_are_fed_the_same(name):
    """To what 11 bits can hold, in every array; keys and values only where there is text."""
    cases, features = fed()
    given = heads_fed.text(features, mending.parts(features, 12, np.random.default_rng(1))[0])
    kept, made = (flat(cases[name].given[side](given)) for side in heads.SIDES)
    assert kept.keys() == made.keys()
    for path, ours in kept.items():
        theirs = made[path]
        assert ours.shape == theirs.shape, path
        if ours.ndim == 4 and ours.shape[0] == len(given.which):  # B H L K
            text = np.arange(ours.shape[2]) >= np.array(given.pad - (features.about["end"] - ours.shape[2]))[:, None]
            ours, theirs = (np.where(text[:, None, :, None], x, 0) for x in (ours, theirs))
        if ours.ndim == 4 and ours.shape[1] == len(given.which):  # T B n D
            ours, theirs = (np.where(given.chosen[None, :, :, None], x, 0) for x in (ours, theirs))
        there = np.isfinite(ours)
        assert np.array_equal(there, np.isfinite(theirs)), path
        off = np.linalg.norm((ours - theirs)[there]) / (np.linalg.norm(ours[there]) + 1e-9)
        assert off < 2e-3, (path, off)


def test_positions_from_anywhere_are_fed_the_same():
    """Some first of their documents, where the window before them is empty."""
    _, features = fed()
    loaded = teacher(smoke() / "domain")
    case = heads_drawn.drawn_case(smoke(), loaded, features)
    (at,) = heads_drawn.positions(features, 60, 1, seed=3)
    assert np.isin(at, features.begins).any() and len(np.unique(features.document[at])) < len(at)
    kept, made = (flat(case.given[side](at)) for side in heads.SIDES)
    for path, ours in kept.items():
        there = np.isfinite(ours)
        assert ours.shape == made[path].shape and np.array_equal(there, np.isfinite(made[path])), path
        off = np.linalg.norm((ours - made[path])[there]) / (np.linalg.norm(ours[there]) + 1e-9)
        assert off < 2e-3, (path, off)


def flat(given: Any) -> dict[str, np.ndarray]:
    found: Any = tree_flatten([of._asdict() if hasattr(of, "_asdict") else of for of in given])
    return {path: np.array(array.astype(mx.float32)) for path, array in found}


def test_other_states_are_not_raced_against():
    with pytest.raises(ValueError, match="depth: the sides do not train the same"):
        heads.same("depth", [1.0, 2.0], [1.0, 2.1])
    heads.same("depth", [1.0, 2.0], [1.001, 2.001])


@pytest.mark.slow
def test_all_heads_are_raced_and_the_figure_is_of_the_one_that_reads_all_taps(tmp_path, capsys):
    root = tmp_path / "run"
    for stage in recipes.stages(recipes.smoke()):
        curriculum.link(smoke() / stage.name, root / stage.name)
    (root / "recipe.json").write_text(json.dumps({"recipe": "smoke"}))
    parser = ArgumentParser()
    heads.add_arguments(parser)
    words = ["--pairs", "2", "--batches", "1", "--positions", "40"]
    heads.run(parser.parse_args(["--run", str(root), "--folder", str(tmp_path), *words]))
    found = json.loads((tmp_path / "heads.json").read_text())
    assert all(entries(name, figure) for name, figure in found["figures"].items())
    seconds = found["heads"][heads.DRAWN]["seconds"]
    ratios = np.array(seconds["made"]) / np.array(seconds["kept"])
    assert found["figures"]["heads.cache_ratio"]["value"] == pytest.approx(np.median(ratios))
    assert found["figures"]["heads.cache_ratio_whole_documents"]["value"].keys() == set(heads.HEADS)


def test_batches_have_about_as_many_positions_as_asked_for_and_all_documents_once():
    _, features = fed()
    found, counts = heads.drawn(features, 40), np.bincount(features.document)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(counts)))
    sizes = sorted(int(counts[part].sum()) for part in found)
    assert sizes[1] >= 40 - counts.max() and sizes[-1] <= 40 + counts.max()
