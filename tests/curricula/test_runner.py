"""Stages in strict order; what is whole is skipped, what is changed, damaged or not good enough is refused."""

import json
from dataclasses import dataclass

import pytest

from curricula.runner import MANIFEST, GateClosed, Past, Stage, aside, read, run, state


@dataclass(frozen=True)
class Config:
    rate: float = 0.1


def make(config, needs, out, group):
    """Counts how often it was called, beside what it makes of its config and needs."""
    calls = out.parent / f"{out.name}.calls"
    calls.write_text(str(1 + int(calls.read_text() if calls.exists() else 0)))
    below = "".join((folder / "made.txt").read_text() for folder in needs.values())
    (out / "made.txt").write_text(f"{below}{out.name} {config.rate}\n")
    return {"rate": config.rate}


def stages(rate=0.1, gate=None, given=None):
    first = Stage(name="first", run=make, config=Config(rate), gate=gate or {}, given=given or (lambda config: {}))
    return [first, Stage(name="second", run=make, config=Config(), needs=("first",))]


def calls(root, name):
    return int((root / f"{name}.calls").read_text())


def quiet(text):
    pass


def test_a_whole_stage_is_not_run_again(tmp_path):
    once = run(stages(), tmp_path, say=quiet)
    again = run(stages(), tmp_path, say=quiet)
    assert once == again and calls(tmp_path, "first") == calls(tmp_path, "second") == 1
    assert once["second"]["needs"] == {"first": once["first"]["digest"]}
    assert (tmp_path / "second/made.txt").read_text() == "first 0.1\nsecond 0.1\n"


def test_what_a_kill_cut_short_is_cleared_away(tmp_path):
    """Of a stage that is whole, too: its manifest is written again where a gate is passed."""
    run(stages(), tmp_path, until="first", say=quiet)
    cut = [tmp_path / "first/.manifest.json.x.part.json", tmp_path / "second/deep/.a.safetensors.y.part.safetensors"]
    for path in cut:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    (tmp_path / "first/.a.part").mkdir()  # no write of ours
    run(stages(), tmp_path, say=quiet)
    assert not any(path.exists() for path in cut) and calls(tmp_path, "first") == 1


def test_manifests_do_not_depend_on_when_they_were_made(tmp_path):
    assert run(stages(), tmp_path / "a", say=quiet) == run(stages(), tmp_path / "b", say=quiet)


@pytest.mark.parametrize(
    "order, said",
    [
        ([1, 0], "second needs first, which must come before it"),
        ([1], "second needs first"),
        ([0, 1, 0], "first appears twice"),
    ],
)
def test_the_order_is_checked_before_anything_starts(order, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        run([stages()[i] for i in order], tmp_path, say=quiet)
    assert not list(tmp_path.iterdir())


def test_until_stops_there_and_the_rest_follows_later(tmp_path):
    assert list(run(stages(), tmp_path, until="first", say=quiet)) == ["first"]
    assert list(run(stages(), tmp_path, say=quiet)) == ["first", "second"]
    assert calls(tmp_path, "first") == 1
    with pytest.raises(ValueError, match="no stage third; the stages are first, second"):
        run(stages(), tmp_path, until="third", say=quiet)


def test_a_changed_config_is_refused_with_what_changed(tmp_path):
    run(stages(), tmp_path, say=quiet)
    with pytest.raises(ValueError, match="config.rate was 0.1 and is 0.2.*--from first"):
        run(stages(rate=0.2), tmp_path, say=quiet)


def test_other_data_under_the_same_name_are_refused(tmp_path):
    run(stages(given=lambda config: {"data": "a"}), tmp_path, say=quiet)
    with pytest.raises(ValueError, match="given.data was 'a' and is 'b'"):
        run(stages(given=lambda config: {"data": "b"}), tmp_path, say=quiet)


def test_a_stage_made_from_another_one_than_is_there_is_refused(tmp_path):
    run(stages(), tmp_path, say=quiet)
    (tmp_path / "second").rename(tmp_path / "kept")
    aside(stages(), tmp_path, "first")
    run(stages(rate=0.2), tmp_path, until="first", say=quiet)
    (tmp_path / "kept").rename(tmp_path / "second")
    with pytest.raises(ValueError, match="second was made of something else: needs.first"):
        run(stages(rate=0.2), tmp_path, say=quiet)


def flip(path):
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "harm, said",
    [
        (flip, "made.txt has other bytes than were written"),
        (shorten, "made.txt has 9 bytes and had 10"),
        (lambda path: path.unlink(), "made.txt is missing"),
    ],
)
def test_a_damaged_artifact_is_refused_and_named(harm, said, tmp_path):
    run(stages(), tmp_path, say=quiet)
    harm(tmp_path / "first/made.txt")
    with pytest.raises(ValueError, match=f"first is damaged: {said}"):
        run(stages(), tmp_path, say=quiet)


@pytest.mark.parametrize("edit", [{"metrics": {"rate": 1.0}}, {"past_gate": {"why": "x"}}, {"digest": "0"}])
def test_an_edited_manifest_is_refused(edit, tmp_path):
    run(stages(), tmp_path, say=quiet)
    path = tmp_path / "first" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(ValueError, match="was changed after it was written"):
        run(stages(), tmp_path, say=quiet)


@pytest.mark.parametrize(
    "text, why",
    [("", "Expecting value"), ("[]", "it has no digest"), ("{}", "it has no digest"), ("[1]", "cannot convert")],
)
def test_a_manifest_that_is_none_is_refused(text, why, tmp_path):
    run(stages(), tmp_path, say=quiet)
    (tmp_path / "first" / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=f"is no manifest that can be read: '{why}"):
        run(stages(), tmp_path, say=quiet)


def test_a_closed_gate_stops_the_run_with_the_numbers_and_keeps_what_was_made(tmp_path):
    for _ in range(2):  # and stays closed
        with pytest.raises(GateClosed, match=r"the gate of first is closed: rate is 0.1, and >= 0.5 is needed"):
            run(stages(gate={"rate": ">= 0.5"}), tmp_path, say=quiet)
    assert calls(tmp_path, "first") == 1 and not (tmp_path / "second").exists()
    assert read(tmp_path / "first")["metrics"] == {"rate": 0.1}


def test_a_person_may_let_a_gate_pass_and_the_reason_is_kept(tmp_path):
    closed = stages(gate={"rate": ">= 0.5"})
    with pytest.raises(GateClosed):
        run(closed, tmp_path, say=quiet)
    made = run(closed, tmp_path, past=Past("first", "a trial"), say=quiet)
    assert made["first"]["past_gate"] == {"why": "a trial", "closed": ["rate is 0.1, and >= 0.5 is needed"]}
    assert run(closed, tmp_path, say=quiet) == made  # and need not be asked again
    assert calls(tmp_path, "first") == 1


def test_a_gate_on_something_that_no_stage_measures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="first measures no truth, which its gate asks for; it measures rate"):
        run(stages(gate={"truth": ">= 0.5"}), tmp_path, say=quiet)


def test_what_could_not_be_measured_closes_a_gate_in_words(tmp_path):
    with pytest.raises(GateClosed, match=r"rate could not be measured, and >= 0.5 is needed"):
        run(stages(rate=None, gate={"rate": ">= 0.5"}), tmp_path, say=quiet)
    assert state(tmp_path / "first") == "its gate is closed"


def test_made_again_from_a_stage_on_and_nothing_is_lost(tmp_path):
    run(stages(), tmp_path, say=quiet)
    aside(stages(), tmp_path, "second")
    run(stages(), tmp_path, say=quiet)
    assert (calls(tmp_path, "first"), calls(tmp_path, "second")) == (1, 2)
    assert (tmp_path / "second.1/made.txt").exists()
