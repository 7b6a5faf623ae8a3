"""The loop: sums across cuts, resumed to the bit, stopped before harm, ended early, interrupted without loss."""

import json
import math
import os
import signal

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from agp.adapters import attach
from agp.losses import next_token
from agp.states import BEST, STATE, read_best
from agp.targets import design
from agp.train import METRICS, FitConfig, fit
from tests.toys import toy

ROWS = mx.random.randint(1, 96, (64, 13), key=mx.random.key(7))


def student(dropout=0.0, kind="lora"):
    mx.random.seed(3)
    model = toy()
    attach(model, design(model, "all", rank=2, dropout=dropout, kind=kind))
    return model


def loss(model, tokens, weights):
    hidden = model.blocks(model.embed(tokens)).hidden[:, :-1].flatten(0, 1)
    return next_token(model, hidden, tokens[:, 1:].flatten(), weights.flatten())


def batches(rows=4, cuts=1):
    """Rows of unequal weight: half of them count for a third of their length only."""

    def of(step, micro):
        at = (step * rows + micro * (rows // cuts)) % 60
        tokens = ROWS[at : at + rows // cuts]
        return tokens, (mx.arange(12) < mx.where(mx.arange(at, at + len(tokens)) % 2, 4, 12)[:, None]).astype(
            mx.float32
        )

    return of


def weights(model):
    return dict(tree_flatten(model.trainable_parameters()))


def equal(a, b):
    return a.keys() == b.keys() and all(mx.array_equal(a[k], b[k]) for k in a)


def run(out, steps=6, model=None, of=batches(), **how):
    model = model or student()
    settings = {"rate": 1e-2, "warmup": 2, "log_every": 1, "save_every": 2}
    named = {k: how.pop(k) for k in list(how) if k in FitConfig.__dataclass_fields__}
    return model, fit(model, loss, of, FitConfig(steps=steps, **settings | named), out, **how)


def rows(out):
    return [json.loads(line) for line in (out / METRICS).read_text().splitlines()]


def test_it_learns(tmp_path):
    _, report = run(tmp_path, steps=30, of=lambda step, micro: batches()(1, 0))
    assert report.ended == "done" and rows(tmp_path)[-1]["loss"] < 0.8 * rows(tmp_path)[0]["loss"]


def test_micro_batches_of_unequal_weight_add_up_to_the_batch(tmp_path):
    """Seen to fail with each micro-batch divided by its own count."""
    one, _ = run(tmp_path / "one", rate=1e-3)
    cut, _ = run(tmp_path / "cut", of=batches(cuts=4), accumulate=4, rate=1e-3)
    for name, w in weights(one).items():
        assert mx.abs(w - weights(cut)[name]).max() < 1e-5


@pytest.mark.parametrize("broken_at", [2, 4])
def test_a_resumed_run_ends_in_the_same_bits(broken_at, tmp_path):
    """With dropout, whose draws must not depend on where it broke. Seen to fail with the optimizer's state left out."""
    whole, _ = run(tmp_path / "whole", model=student(0.3))

    def dying(step, micro):
        if step == broken_at + 2 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            raise RuntimeError("power cut")
        return batches()(step, micro)

    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "broken", model=student(0.3), of=dying)
    resumed, report = run(tmp_path / "broken", model=student(0.3), of=dying)
    assert report.step == 6 and equal(weights(whole), weights(resumed))
    assert [r["step"] for r in rows(tmp_path / "broken")] == list(range(1, 7))
    kept = [mx.load(str(tmp_path / name / STATE), return_metadata=True) for name in ("whole", "broken")]
    assert equal(kept[0][0], kept[1][0]) and kept[0][1] == kept[1][1]


def test_a_loss_that_is_no_number_updates_nothing(tmp_path):
    def poisoned(step, micro):
        tokens, w = batches()(step, micro)
        return tokens, w * (math.nan if step == 3 else 1)

    model = student()
    with pytest.raises(FloatingPointError, match="at step 3; nothing was updated. The last good state is step 2 in"):
        run(tmp_path, model=model, of=poisoned)
    good, _ = run(tmp_path / "good", steps=2)  # both steps are of the warm-up: the same rates
    assert rows(tmp_path)[-1]["step"] == 2 and equal(weights(model), weights(good))


def test_a_batch_without_weight_is_an_error_and_no_division(tmp_path):
    with pytest.raises(FloatingPointError, match="at step 1"):
        run(tmp_path, of=lambda step, micro: (ROWS[:2], mx.zeros((2, 12))))


def test_ctrl_c_ends_the_step_and_saves(tmp_path):
    def pressed(step, micro):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return batches()(step, micro)

    _, report = run(tmp_path, of=pressed, save_every=100)
    assert report.step == 3 and report.ended == "interrupted"
    whole, _ = run(tmp_path / "whole", save_every=100)
    resumed, report = run(tmp_path, save_every=100)
    assert report.ended == "done" and equal(weights(whole), weights(resumed))


def test_ctrl_c_while_the_last_step_is_judged_is_heard_too(tmp_path):
    """Or what follows would begin, hours of it."""

    calls = []

    def judged():
        calls.append(1)
        if len(calls) == 2:  # the first is before the first step
            os.kill(os.getpid(), signal.SIGINT)
        return {"loss": 1.0}

    _, broken_off = run(tmp_path, scores=judged, evaluate_every=100)
    _, again = run(tmp_path, scores=judged, evaluate_every=100)
    assert broken_off.ended == "interrupted" and again.ended == "done"
    assert broken_off.step == again.step and len(calls) == 2


def test_it_ends_early_keeps_the_best_and_stays_ended(tmp_path):
    scores = iter([5.0, 4.0, 3.0, 3.5, 3.2, 9.0])
    how = {"evaluate_every": 2, "patience": 2, "steps": 100, "scores": lambda: {"loss": next(scores)}}
    model, report = run(tmp_path, **how)
    assert report.ended == "early" and (report.best, report.best_step, report.step) == (3.0, 4, 8)
    best = mx.load(str(tmp_path / BEST))
    four, _ = run(tmp_path / "four", steps=4, floor=1.0)
    assert not equal(best, weights(model)) and best.keys() == weights(four).keys()
    assert [r["held_loss"] for r in rows(tmp_path) if "held_loss" in r] == [5.0, 4.0, 3.0, 3.5, 3.2]
    _, again = run(tmp_path, **how)
    assert again.ended == "early" and again.step == 8


def test_another_config_or_other_inputs_are_refused(tmp_path):
    run(tmp_path, steps=2, inputs={"data": "abc"})
    with pytest.raises(ValueError, match=r"fit.rate = 0.01, asked for is 0.5; data = 'abc', asked for is 'x'"):
        run(tmp_path, steps=2, rate=0.5, inputs={"data": "x"})
    with pytest.raises(ValueError, match="does not fit this model"):
        run(tmp_path, steps=2, inputs={"data": "abc"}, model=student(kind="dora"))


def test_a_damaged_state_is_refused(tmp_path):
    run(tmp_path, steps=2)
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes()[:-7])
    with pytest.raises(ValueError, match="cannot go on: state.safetensors is truncated"):
        run(tmp_path, steps=2)


def test_the_rate_goes_up_in_a_line_and_down_in_half_a_cosine():
    config = FitConfig(steps=101, rate=2.0, warmup=10, floor=0.5)
    rates = [config.rate_at(step) for step in range(1, 102)]
    assert rates[:10] == pytest.approx([0.2 * i for i in range(1, 11)])
    assert rates[10] == 2.0 and rates[100] == pytest.approx(1.0) and rates[55] == pytest.approx(1.5)


def test_a_config_that_makes_no_sense_is_one_error(tmp_path):
    with pytest.raises(ValueError, match="steps is 0; 1 or more is needed; rate is -1; a number above 0 is needed"):
        run(tmp_path, steps=0, rate=-1)


@pytest.mark.parametrize(
    "odd",
    [
        {"rate": math.nan},
        {"rate": math.inf},
        {"clip": math.nan},
        {"floor": -5},
        {"floor": 2},
        {"warmup": -5},
        {"weight_decay": -1e30},
        {"seed": -1},
        {"seed": 2**70},
        {"patience": 0},
    ],
    ids=str,
)
def test_settings_that_would_spoil_a_run_are_refused(odd, tmp_path):
    with pytest.raises(ValueError, match=f"^{next(iter(odd))} is"):
        run(tmp_path, **odd)
    assert not list(tmp_path.iterdir())


def test_how_often_a_run_writes_may_change_when_it_goes_on(tmp_path):
    run(tmp_path, steps=4, log_every=1)
    run(tmp_path, steps=4, log_every=2, save_every=1)


def test_what_a_kill_cut_short_is_cleared_away(tmp_path):
    (tmp_path / ".state.safetensors.x.part.safetensors").write_bytes(b"")
    run(tmp_path, steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS, STATE]


def test_what_is_no_state_is_refused(tmp_path):
    run(tmp_path, steps=2, scores=lambda: {"loss": 1.0})
    (tmp_path / STATE).write_bytes((tmp_path / BEST).read_bytes())
    with pytest.raises(ValueError, match="is no state of a run"):
        run(tmp_path, steps=2)


@pytest.mark.parametrize("line", ["5", '{"mine": 1}', '{"step": "x"}'])
def test_rows_that_no_run_wrote_are_not_dropped(line, tmp_path):
    (tmp_path / METRICS).write_text(line + "\n")
    with pytest.raises(ValueError, match="which no run wrote"):
        run(tmp_path, steps=2)
    assert (tmp_path / METRICS).read_text() == line + "\n"


def test_best_weights_are_read_whole_or_not(tmp_path):
    model, _ = run(tmp_path, steps=2, scores=lambda: {"loss": 1.0})
    read_best(tmp_path, model)
    (tmp_path / BEST).write_bytes((tmp_path / BEST).read_bytes()[:-7])
    with pytest.raises(ValueError, match="best.safetensors is truncated"):
        read_best(tmp_path, model)
    (tmp_path / BEST).unlink()
    with pytest.raises(ValueError, match="best.safetensors is missing"):
        read_best(tmp_path, model)
