"""A head on disk is loaded whole or not at all: what is missing, strange or misshapen is named, with its file."""

import json
import re

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from heads import depth, saved
from heads.trajectory import Config, Head

CONFIG = Config(taps=2, width=4, dim=3, facts=5, hidden=6)


@pytest.fixture
def folder(tmp_path):
    saved.save(tmp_path, CONFIG, Head(CONFIG))
    return tmp_path


def opened(folder):
    return saved.load(folder, Config, Head)


def rewritten(folder, change):
    path = folder / saved.FILE
    arrays = dict(mx.load(str(path)))
    change(arrays)
    mx.eval(arrays)
    mx.save_safetensors(str(path), arrays)


def reset(folder, **change):
    path = folder / saved.CONFIG
    given = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in given.items() if value is not None}))


def test_what_was_saved_comes_back_frozen_and_as_it_is_used(folder):
    head = opened(folder)
    assert not tree_flatten(head.trainable_parameters()) and not head.training
    assert {n: a.shape for n, a in tree_flatten(head.parameters())} == {
        n: a.shape for n, a in tree_flatten(Head(CONFIG).parameters())
    }
    assert sorted(path.name for path in folder.iterdir()) == [saved.CONFIG, saved.FILE]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda a: a.pop("bias"), "bias is missing"),
        (lambda a: a.update(more=mx.zeros(3)), "more is no part of it"),
        (lambda a: a.update(middle=mx.zeros((2, 6, 5))), r"middle has shape (2, 6, 5); (2, 6, 6) is needed"),
        (lambda a: (a.pop("last"), a.update(more=mx.zeros(3))), "last is missing; more is no part of it"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_all_are_named(change, said, folder):
    rewritten(folder, change)
    with pytest.raises(ValueError, match=re.escape(f"{folder / saved.FILE}: {said}")):
        opened(folder)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"hidden": None}, "holds other settings than a head of this kind has: hidden"),
        ({"colour": "red"}, "holds other settings than a head of this kind has: colour"),
    ],
)
def test_settings_of_another_kind_are_refused(change, said, folder):
    reset(folder, **change)
    with pytest.raises(ValueError, match=re.escape(f"{folder / saved.CONFIG} {said}")):
        opened(folder)


def test_settings_of_another_size_are_told_by_the_arrays(folder):
    reset(folder, hidden=7)
    with pytest.raises(ValueError, match=r"head.safetensors: .*bias has shape \(2, 6\); \(2, 7\) is needed"):
        opened(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '"x"'])
def test_settings_that_cannot_be_read_are_refused(text, folder):
    (folder / saved.CONFIG).write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{folder / saved.CONFIG} cannot be read")):
        opened(folder)


@pytest.mark.parametrize("name", [saved.CONFIG, saved.FILE])
def test_a_file_that_is_gone_is_named(name, folder):
    (folder / name).unlink()
    with pytest.raises((ValueError, OSError), match=re.escape(str(folder / name))):
        opened(folder)


def test_a_file_that_was_cut_short_is_refused(folder):
    path = folder / saved.FILE
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        opened(folder)


def test_lists_come_back_as_tuples(tmp_path):
    settings = depth.Config(taps=1, blocks=(5, 6), width=8)
    saved.save(tmp_path, settings, Head(CONFIG))
    assert saved.settings(tmp_path / saved.CONFIG, depth.Config) == settings
