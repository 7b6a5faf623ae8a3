"""States of the frozen blocks: read from disk they train as if computed anew, and damage is seen.

Seen to fail when broken: keys of the wrong kind borrowed, rows of a batch in another order, a start one block too high,
digests not compared, rows of another model kept.
"""

from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from agp import language
from agp.adapters import attach
from agp.features import ABOUT, DIGESTS, STATES, Prefix, lowest
from agp.language import look_up
from agp.packing import assemble
from agp.supervise import Example
from agp.targets import design
from agp.train import FitConfig, fit
from tests.laws.test_training import every_toy
from tests.test_adapters import stir
from tests.toys import toy


def examples(sizes=(5, 19, 8, 3, 13, 11, 30)):
    rng = np.random.default_rng(4)
    return [Example(f"r{i}", rng.integers(1, 96, n, dtype=np.int32), rng.random(n) < 0.7) for i, n in enumerate(sizes)]


def adapted(family, name="shares some", last=2):
    model = toy(family, name)
    attach(model, design(model, "all", rank=3, last=min(last, model.config.num_layers - 1)))
    stir(model)
    return model


def some_rows():
    e = examples()
    return [[e[0], e[1]], [e[2], e[3], e[4]], [e[5]], [e[6]]]


def kept(model, folder, rows, **made_by) -> Prefix:
    return Prefix(model, lowest(model), rows, folder, made_by)


@every_toy
@pytest.mark.parametrize("last", [1, 3])
def test_kept_states_train_as_recomputed_ones(family, name, last, tmp_path):
    """In other batches than they were computed in, and a second time from disk."""
    model, rows = adapted(family, name, last), some_rows()
    for batch in ([rows[2], rows[0]], [rows[1], rows[3], rows[0]], [rows[2]]):
        prefix = kept(model, tmp_path, rows)
        given = look_up(model, assemble(batch))
        short = given | prefix.given(batch, given["vectors"].shape[1])
        (value, count), grads = nn.value_and_grad(model, partial(language.loss, start=prefix.stop))(model, short)
        (expected, total), right = nn.value_and_grad(model, language.loss)(model, given)
        assert count.item() == total.item()
        assert abs(value.item() / expected.item() - 1) < 1e-5
        for (path, grad), (_, other) in zip(tree_flatten(grads), tree_flatten(right), strict=True):
            assert mx.abs(grad - other).max().item() <= 3e-5 * max(mx.abs(other).max().item(), 1e-3), path
        measured = [language.held_out(model, g, s)[0].item() for g, s in ((short, prefix.stop), (given, 0))]
        assert abs(measured[0] / measured[1] - 1) < 1e-5


@pytest.mark.parametrize("kind", [mx.bfloat16, mx.float16])
def test_half_precision_is_kept_to_the_bit(kind, tmp_path):
    model, rows = adapted("gemma4"), some_rows()
    model.set_dtype(kind)
    prefix = kept(model, tmp_path, rows)
    found = prefix.given([rows[3]], 32)
    assert found["hidden"].dtype == kind
    assert mx.array_equal(found["hidden"][0, :30], prefix.computed(rows[3])[0])


def test_blocks_run_once_for_each_row(tmp_path, monkeypatch):
    model, rows, seen = adapted("gemma4"), some_rows(), []
    computed = Prefix.computed
    monkeypatch.setattr(Prefix, "computed", lambda self, row: seen.append(row[0].place) or computed(self, row))
    prefix = kept(model, tmp_path, rows)
    seen.clear()  # of the first row shapes are taken
    for _ in range(3):
        prefix.given(rows, 32)
    assert seen == [row[0].place for row in rows]
    kept(model, tmp_path, rows).given(rows, 32)
    assert seen[len(rows) :] == [rows[0][0].place]


def test_damage_is_seen_and_mended(tmp_path, capsys):
    model, rows = adapted("gemma4"), some_rows()
    right = kept(model, tmp_path, rows).given(rows, 32)
    data = bytearray((tmp_path / STATES).read_bytes())
    data[7] ^= 1
    (tmp_path / STATES).write_bytes(data)
    found = kept(model, tmp_path, rows).given(rows, 32)
    assert "is damaged at byte 0" in capsys.readouterr().err
    assert mx.array_equal(found["hidden"], right["hidden"])
    kept(model, tmp_path, rows).given(rows, 32)
    assert not capsys.readouterr().err


def test_a_row_cut_off_by_a_kill_is_computed_again(tmp_path, capsys):
    """Its states were written, its digest was not."""
    model, rows = adapted("gemma4"), some_rows()
    prefix = kept(model, tmp_path, rows)
    right = prefix.given(rows, 32)
    prefix.digests[1] = 0
    prefix.states[:] = prefix.states ^ (np.arange(len(prefix.states)) // prefix.width == 25).astype(np.uint8)
    again = kept(model, tmp_path, rows).given(rows, 32)
    assert mx.array_equal(again["hidden"], right["hidden"]) and not capsys.readouterr().err


def test_what_another_model_or_other_rows_left_is_not_read(tmp_path):
    model, rows = adapted("gemma4"), some_rows()
    kept(model, tmp_path, rows, weights="a").given(rows, 32)
    for other in (kept(model, tmp_path, rows, weights="b"), kept(model, tmp_path, rows[:2], weights="b")):
        assert not np.array(other.digests).any()
    assert (tmp_path / DIGESTS).stat().st_size == 2 * 16
    (tmp_path / ABOUT).write_text("{")
    assert not np.array(kept(model, tmp_path, rows[:2], weights="b").digests).any()


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("agp.features.shutil.disk_usage", lambda folder: type("Free", (), {"free": 100}))
    with pytest.raises(ValueError, match="MB free: make room"):
        kept(adapted("gemma4"), tmp_path, some_rows())
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.parametrize("family", ["gemma4", "gemma3n"])
def test_a_run_from_kept_states_ends_where_one_without_ends(family, tmp_path):
    rows, ends = some_rows(), []
    for keep in (False, True):
        mx.random.seed(0)
        model = adapted(family)
        prefix = kept(model, tmp_path / "prefix", rows) if keep else None

        def given(step, micro, prefix=prefix, model=model):
            batch = [rows[step % 4], rows[(step + 1) % 4]]
            whole = look_up(model, assemble(batch))
            return (whole | (prefix.given(batch, whole["vectors"].shape[1]) if prefix else {}),)

        loss = partial(language.loss, start=prefix.stop if prefix else 0)
        fit(model, loss, given, FitConfig(steps=8, rate=1e-3), tmp_path / str(keep))
        ends.append(dict(tree_flatten(model.trainable_parameters())))
    for path, w in ends[0].items():
        assert mx.abs(w - ends[1][path]).max() < 2e-5, path
