"""`agp train RECIPE` and `agp runs`, as they are typed."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from curricula import estimate, recipes, runner
from scripts import cli, recipe
from tests.curricula.run import smoke

STAGES = [stage.name for stage in recipes.stages(recipes.smoke())]


@pytest.fixture
def made(tmp_path):
    shutil.copytree(smoke(), tmp_path / "runs/smoke")
    return tmp_path / "runs/smoke"


def train(*words):
    """In this process, so that what it says is seen."""
    return cli.main(["train", *words, "--processes", "1"])


def test_a_whole_run_is_not_made_again(made, capsys):
    assert train("smoke", "--out", str(made)) == 0
    said = capsys.readouterr().out
    assert all(f"{stage}: whole already" in said for stage in STAGES) and f"smoke: all is in {made}" in said


def test_runs_lists_what_there_is_and_how_far_it_is(made, capsys):
    assert train("smoke", "--out", str(made), "--until", "rows") == 0
    (made / "harvest/manifest.json").unlink()
    capsys.readouterr()
    assert cli.main(["runs", str(made.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("smoke  (smoke)")
    found = dict(line.split()[:2] for line in lines[1:])
    assert found == dict.fromkeys(STAGES, "whole") | {"harvest": "begun"}


def test_runs_sees_a_flipped_byte_if_asked_to_look(made, capsys):
    assert train("smoke", "--out", str(made), "--until", "rows") == 0
    path = made / "harvest/test-0000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert cli.main(["runs", str(made.parent)]) == 0
    assert cli.main(["runs", str(made), "--check"]) == 1
    assert "damaged: test-0000.safetensors has other bytes" in capsys.readouterr().out
    assert train("smoke", "--out", str(made)) == 2
    assert "harvest is damaged: test-0000.safetensors has other bytes than were written" in capsys.readouterr().err


def test_times_that_cannot_be_read_are_named_before_hours_are_spent(made, capsys):
    assert train("smoke", "--out", str(made), "--until", "rows") == 0
    (made / "rows/times.json").write_text("{")
    assert cli.main(["runs", str(made)]) == 1
    assert f"({made / 'rows/times.json'} cannot be read; nothing needs it: remove it)" in capsys.readouterr().out
    (made / "rows/manifest.json").unlink()
    assert train("smoke", "--out", str(made), "--until", "rows") == 2
    assert "nothing needs it: remove it" in capsys.readouterr().err
    (made / "rows/times.json").unlink()
    assert train("smoke", "--out", str(made), "--until", "rows") == 0


def test_no_runs_yet_is_no_error_and_none_where_some_should_be_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["runs"]) == 0
    assert "no runs in runs/" in capsys.readouterr().out
    assert cli.main(["runs", "nowhere"]) == 2
    assert "there is no run in nowhere; `agp train` makes one" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_done_and_what_it_takes_and_makes_nothing(tmp_path, capsys):
    assert train("smoke", "--out", str(tmp_path / "run"), "--dry-run") == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[: len(STAGES)]] == STAGES
    assert "What they take, estimated for tiny-gemma4; " in said and "would not start" not in said
    assert re.search(r"harvest +[\d.]+ MB \| +[\d.]+ \w+ +[\d.]+ s \| ", said)
    assert "here: fits: " in said and "tokens a second" in said and "nothing has been measured on a Mac" in said
    assert not (tmp_path / "run").exists()


def test_each_process_keeps_a_copy_and_the_dry_run_counts_them(tmp_path, capsys):
    disk = []
    for count in ("20", "60"):
        assert cli.main(["train", "smoke", "--out", str(tmp_path), "--dry-run", "--processes", count]) == 0
        said = capsys.readouterr().out
        found = re.search(rf"^disk: ([\d.]+) GB in all, a copy for each of {count} processes,", said, re.MULTILINE)
        disk.append(float(found[1]) if found else 0)
    assert disk[1] == pytest.approx(3 * disk[0], rel=0.1)
    assert train("smoke", "--out", str(tmp_path), "--dry-run") == 0 and "a copy" not in capsys.readouterr().out


def test_what_is_whole_takes_no_more_time(made, capsys):
    assert train("smoke", "--out", str(made), "--dry-run") == 0
    said = capsys.readouterr().out
    assert re.search(r"harvest .* - \| .* -$", said, re.MULTILINE)


SENSELESS = ["domain.fit.steps=0", "trajectory.hidden=0", "depth.blocks=99", "harvest.windows=8", "transfer.ratios=0"]


@pytest.mark.parametrize("setting", [*SENSELESS, "domain.fit.evaluate_every=0", "semantic.active=0,0,0"])
def test_of_settings_that_make_no_sense_nothing_is_estimated(setting, tmp_path, capsys):
    assert train("smoke", "--out", str(tmp_path), "--dry-run", setting) == 1
    said = capsys.readouterr().out
    assert f"It would not start:\n- {setting.partition('=')[0]} " in said and "What they take" not in said


def test_rows_that_cannot_be_read_are_what_would_be_refused(tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text("{")
    assert train("smoke", "--out", str(tmp_path / "run"), "--dry-run", "--data", str(tmp_path)) == 1
    assert "line 1" in capsys.readouterr().out.partition("It would not start:")[2]


def test_a_dry_run_says_what_would_be_refused(made, capsys):
    words = ["smoke", "--out", str(made), "--dry-run", "trajectory.hidden=8"]
    assert train(*words) == 1
    assert f"- {made / 'trajectory'} was made of something else: config.hidden was 48" in capsys.readouterr().out
    assert train(*words, "--from", "trajectory") == 0
    (made / "recipe.json").write_text('{"recipe": "smoke", "stages": []}')
    assert train("tiny", "--out", str(made), "--dry-run") == 1
    assert f"- {made} holds a run of smoke, and tiny is asked for: give another --out" in capsys.readouterr().out


def test_of_what_is_begun_only_the_rest_is_left(made):
    rows, domain, harvest, *_ = recipes.stages(recipes.smoke())
    cost = estimate.Cost(0, sum(p.stat().st_size for p in (made / "harvest").glob("*.safetensors")), 0, ())
    assert recipe.left(harvest, cost, made / "harvest") == recipe.left(domain, cost, made / "domain") == 0
    for stage in (domain, harvest):
        (made / stage.name / "manifest.json").unlink()
        assert recipe.left(stage, cost, made / stage.name) == 0
    (made / "harvest/heads-0000.safetensors").unlink()
    assert 0 < recipe.left(harvest, cost, made / "harvest") < 0.5
    longer = replace(domain, config=replace(domain.config, fit=replace(domain.config.fit, steps=8)))
    assert recipe.left(longer, cost, made / "domain") == 0.75
    with (made / "domain/metrics.jsonl").open("a") as file:
        file.write('{"step": ')  # half a line, of a kill
    assert recipe.left(longer, cost, made / "domain") == 0.75
    assert recipe.left(domain, cost, made / "nowhere") == recipe.left(harvest, cost, made / "nowhere") == 1


@pytest.mark.parametrize("name", ["gemma4_e2b", "gemma3n_e2b", "gemma4_e4b"])
def test_a_big_recipe_is_estimated_before_anything_is_downloaded(name, tmp_path, capsys):
    assert train(name, "--out", str(tmp_path / "run"), "--dry-run") == 1
    said = capsys.readouterr().out
    assert "(not here: by its public config)" in said and "16 GB Mac: fits: " in said
    assert "- rows.data is missing: rows of your own, --data DIR" in said
    assert ("- a run of gemma4_e2b must have passed all its gates first" in said) == (name == "gemma4_e4b")


def test_of_an_unknown_model_nothing_is_estimated(tmp_path, capsys):
    words = ["smoke", "--out", str(tmp_path / "run"), "--model", "some/model", "--dry-run"]
    assert train(*words) == 0
    said = capsys.readouterr().out
    assert "not estimated: some/model is not here, and its shape is not known before it is" in said


def test_rows_of_your_own_are_counted(tmp_path, capsys):
    lines = "".join(json.dumps({"prompt": f"what is {n}?", "completion": f"it is {n}"}) + "\n" for n in range(400))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/train.jsonl").write_text(lines)
    words = ["gemma4_e2b", "--data", str(tmp_path / "notes"), "--out", str(tmp_path / "run"), "--dry-run"]
    assert train(*words) == 0
    said = capsys.readouterr().out
    assert "; 400 rows, 3.5 letters a token" in said
    assert "would not start" not in said


def passed(made):
    """As if the run had been one of gemma4_e2b whose gates are met."""
    about = json.loads((made / "recipe.json").read_text()) if (made / "recipe.json").exists() else {"stages": STAGES}
    (made / "recipe.json").write_text(json.dumps(about | {"recipe": "gemma4_e2b"}))
    gates = recipes.gemma4_e2b().gates
    for name in STAGES:
        manifest, goals = runner.read(made / name), gates.get(name, {})
        better = {metric: float(goal.split()[1]) * (1 + 1e-9) for metric, goal in goals.items() if ">" in goal}
        better |= {metric: 0.0 for metric, goal in goals.items() if "<" in goal}
        better |= {metric: 0.1 for metric, goal in goals.items() if goal == "> 0"}
        runner.write(made / name, manifest | {"metrics": manifest["metrics"] | better})


@pytest.mark.slow
def test_e4b_starts_only_after_e2b_has_passed_all_its_gates(made, tmp_path, capsys):
    lines = "".join(json.dumps({"prompt": f"what is {n}?", "completion": f"it is {n}"}) + "\n" for n in range(400))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/train.jsonl").write_text(lines)
    out = tmp_path / "runs/big"
    words = ["gemma4_e4b", "--data", str(tmp_path / "notes"), "--out", str(out), "--until", "rows"]

    def refused(*more):
        assert train(*words, *more) == 2
        assert not out.exists()
        return capsys.readouterr().err

    assert f"there is none in {tmp_path / 'runs/gemma4_e2b'}: run `agp train gemma4_e2b" in refused()
    assert train("smoke", "--out", str(made), "--until", "rows") == 0
    said = refused("--after", str(made))
    assert f"{made} has not passed all gates of gemma4_e2b: " in said
    assert "calibrate_documents is " in said and ", not >= 1000" in said
    passed(made)
    (made / "harvest/manifest.json").rename(made / "kept")
    assert "harvest (begun)" in refused("--after", str(made))
    (made / "kept").rename(made / "harvest/manifest.json")
    made.rename(tmp_path / "runs/gemma4_e2b")
    small = ["harvest.taps=4,6,8,10", "domain.quantize=none", "semantic.tap=4", "trajectory.glance=64"]
    assert train(*words, "--model", "tiny-gemma4", *small) == 0
    assert runner.state(out / "rows") == "whole"


def test_a_gate_that_somebody_let_pass_is_not_passed(made, capsys):
    assert train("smoke", "--out", str(made), "--until", "rows") == 0
    passed(made)
    manifest = runner.read(made / "domain")
    gate, told = {"loss_drop": ">= 0.9"}, {"why": "a trial", "closed": []}
    runner.write(made / "domain", manifest | {"gate": gate, "past_gate": told})
    assert train("gemma4_e4b", "--data", "x=nowhere", "--after", str(made)) == 2
    assert "domain (past its gate: a trial)" in capsys.readouterr().err


def test_a_stage_made_again_keeps_the_old_one_beside(made, capsys):
    assert train("smoke", "--out", str(made), "--from", "rows", "--until", "rows") == 0
    assert {path.name for path in made.iterdir() if path.is_dir()} == {"rows", *(f"{name}.1" for name in STAGES)}


def test_a_closed_gate_may_be_passed_for_a_reason(made, tmp_path, capsys):
    shutil.rmtree(made)
    (tmp_path / "gates.toml").write_text('gates.rows.heads = ">= 1e9"\n')
    words = ["smoke", "--out", str(made), "--until", "rows", "--config", str(tmp_path / "gates.toml")]
    assert train(*words) == 2
    assert "the gate of rows is closed" in capsys.readouterr().err
    assert train(*words, "--past-gate", "rows", "--why", "a trial") == 0
    manifest = json.loads((made / "rows/manifest.json").read_text())
    assert manifest["past_gate"]["why"] == "a trial"


WRONG = {
    "no such recipe": (
        ["tyni"],
        "tyni: one of tiny, tiny3n, smoke, gemma4_e2b, gemma3n_e2b, gemma4_e4b, domain is needed",
    ),
    "no rows of one's own": (["gemma4_e2b"], "data is missing: rows of your own, --data DIR with train.jsonl in it"),
    "a glance at all there is": (["smoke", "trajectory.glance=2048"], "fewer than all 2,048 tokens of the vocabulary"),
    "a glance at one token": (["smoke", "trajectory.glance=1"], "trajectory.glance is 1; 2 or more is needed"),
    "taps that leave a hole": (["gemma4_e2b", "harvest.taps=9,14"], "taps are [9, 14]; blocks from 14, the last that"),
    "another order": (["gemma4_e4b", "after=tiny"], "after=tiny: that is no setting; --after DIR"),
    "after nothing": (["smoke", "--after", "runs/tiny"], "--after is of recipes that come after another"),
    "one adapter after another": (["domain", "--after", "runs/tiny"], "--after is of recipes; leave it out"),
    "two recipes": (["tiny", "smoke"], "tiny smoke: one of"),
    "no such setting": (["smoke", "domain.ranks=3"], "no setting domain.ranks"),
    "a setting without its stage": (
        ["smoke", "rank=3"],
        "no setting rank; did you mean domain.rank? it has rows, domain",
    ),
    "less than nothing": (["smoke", "depth.width=-1"], "depth.width is -1; 1 or more is needed"),
    "a rank of nothing": (["smoke", "domain.rank=0"], "domain.rank is 0; 1 or more is needed"),
    "no such linears": (["smoke", "domain.targets=nonsense"], "domain.targets are 'nonsense'; one of all, attention"),
    "a rank that no linear can have": (["smoke", "domain.last=40"], "domain.last is 40; this model has 12 blocks"),
    "no such way to quantize": (
        ["smoke", "domain.quantize=7"],
        "domain.quantize is 7; one of 2, 3, 4, 5, 6, 8 is needed",
    ),
    "a source that there is not": (["smoke", "domain.weights.code2=1"], "domain.weights name code2; the sources are"),
    "no kernel": (["smoke", "semantic.kernel=nosuch"], "semantic.kernel: nosuch is no file; a kernel is a JSON file"),
    "a tap that is not harvested": (
        ["smoke", "transfer.tap=5"],
        "transfer.tap is 5; states are kept after blocks 4, 6",
    ),
    "a block that makes its own keys": (["smoke", "depth.blocks=2"], "depth.blocks are (2,); those that borrow"),
    "a gate of no stage": (["smoke", "gates.foo.x=>= 1"], "gates.foo: there is no such stage; they are rows, domain"),
    "a gate of what nothing measures": (
        ["smoke", "gates.depth.gain=> 0"],
        "gates.depth.gain: depth measures cost, gain_first, gain_surely, and no gain",
    ),
    "no goal": (["smoke", "gates.rows.heads=many"], "gates.rows.heads is 'many'; such as '>= 0.9' is needed"),
    "a gate without a goal": (["smoke", "gates.rows=1"], "gates is {'rows': '1'}; gates.NAME.NAME=value is needed"),
    "more picked than there is": (["smoke", "semantic.picks=99"], "semantic.picks is 99, of 7 latents each; no more"),
    "rows where none are": (["smoke", "domain.data.notes=/nope"], "domain.data is no setting of a recipe; --data DIR"),
    "a list of words": (
        ["smoke", "harvest.taps=a,b"],
        "harvest.taps is 'a,b'; a list such as 4,6,8, each a whole number",
    ),
    "no such checkpoint": (["smoke", "--model", "no/such/model"], "domain.model: there is no folder no/such/model"),
    "no such stage to end at": (
        ["smoke", "--until", "depht"],
        "--until depht: there is no such stage; the stages are rows, domain",
    ),
    "no such stage to begin at": (["smoke", "--from", "x"], "--from x: there is no such stage"),
    "an end before the beginning": (["smoke", "--from", "depth", "--until", "domain"], "nothing would be made"),
    "no such gate": (["smoke", "--past-gate", "x", "--why", "so"], "--past-gate x: there is no such stage"),
    "a gate without a reason": (["smoke", "--past-gate", "rows"], "--past-gate STAGE and --why TEXT go together"),
    "rows made and read": (["smoke", "--data", "x=nowhere"], "nowhere is no folder here"),
    "an end where there is none": (["domain", "--until", "rows"], "--until is of recipes; leave it out"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_user_can_mend_is_one_line(name, tmp_path, capsys):
    words, said = WRONG[name]
    assert train(*words, "--out", str(tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert said in error and error.strip().splitlines()[-1].startswith("agp train: ")


def test_nothing_is_set_aside_for_settings_that_make_no_sense(made, capsys):
    assert train("smoke", "--out", str(made), "--from", "rows", "semantic.picks=0") == 2
    assert "semantic.picks is 0; 1 or more is needed" in capsys.readouterr().err
    assert not list(made.glob("*.1"))


def test_another_setting_is_refused_with_what_changed(made, capsys):
    assert train("smoke", "--out", str(made), "domain.rank=4") == 2
    assert "config.rank was 8 and is 4" in capsys.readouterr().err
