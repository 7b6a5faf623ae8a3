"""Writes are whole or not there, digests see every byte and name, results say what, where and with what."""

import json
import os
import subprocess
import sys

import mlx.core as mx
import pytest

from agp import artifacts
from agp.artifacts import digest, stamp, write_bytes, write_json, write_results, write_safetensors

FIGURE = {"value": 0.21, "interval": [0.2, 0.22], "goal": "<= 0.25", "command": "agp bench train"}


def test_a_file_has_the_sha256_everyone_computes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folders_digest_sees_contents_names_and_places(tmp_path):
    def folder(**files):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            path = root / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return digest(root)

    first = folder(a="1", b__c="2")
    assert first == folder(b__c="2", a="1")
    assert len({first, folder(a="1", b__c="3"), folder(a="1", b__d="2"), folder(a="1", c="2"), folder(a="1")}) == 5


def test_a_symlink_counts_as_its_target(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "real" / "w").write_text("weights")
    (tmp_path / "linked" / "w").symlink_to(tmp_path / "real" / "w")
    assert digest(tmp_path / "real") == digest(tmp_path / "linked")


def test_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        digest(tmp_path / "nothing")


def test_a_write_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]


FULL = """
import resource, signal
import mlx.core as mx
from agp.artifacts import write_bytes, write_safetensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
write_safetensors("kept.safetensors", {"a": mx.zeros(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for write in (lambda: write_safetensors("kept.safetensors", {"a": mx.zeros(100_000)}),
              lambda: write_bytes("b", b"x" * 1_000_000)):
    try:
        write()
    except OSError as e:
        print(e)
"""


def test_where_no_more_can_be_written_it_says_so_and_nothing_is_lost(tmp_path):
    env = os.environ | {"PYTHONPATH": str(artifacts.ROOT)}
    done = subprocess.run([sys.executable, "-c", FULL], cwd=tmp_path, env=env, capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert first.count("could not be written") == 1 and "kept.safetensors could" in first and "MB are free" in first
    assert "b could not be written: File too large" in second
    assert {path.name for path in tmp_path.iterdir()} == {"kept.safetensors"}
    assert (tmp_path / "kept.safetensors").stat().st_size < 1000


def test_a_folder_is_used_by_one_at_a_time(tmp_path):
    with artifacts.alone(tmp_path / "run"):
        with pytest.raises(ValueError, match="another run is using .*run; wait for it, or give another folder"):
            with artifacts.alone(tmp_path / "run"):
                pass
    with artifacts.alone(tmp_path / "run"):
        pass


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_bytes(path, b"old")

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_number_that_is_none_is_no_json(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_the_stamp_says_where_and_with_what(monkeypatch):
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    made = stamp()
    assert made["env"]["MLX_ENABLE_TF32"] == "0"
    assert made["chip"] and made["versions"]["mlx"]
    assert json.loads(json.dumps(made)) == made


def test_the_stamp_keeps_other_variables_to_itself(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    assert "SECRET_TOKEN" not in json.dumps(stamp())


def test_results_alone_do_not_make_the_tree_dirty(tmp_path, monkeypatch):
    git = lambda *words: subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)
    git("init")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text("{}")
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    assert stamp()["dirty"] is False and stamp()["commit"] is None
    (tmp_path / "code.py").write_text("")
    assert stamp()["dirty"] is True


def test_outside_a_checkout_the_stamp_knows_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    assert stamp()["dirty"] is None and stamp()["commit"] is None


@pytest.mark.parametrize("platform, proxy", [("linux", True), ("darwin", None)])
def test_results_say_when_they_stand_in_for_a_mac(tmp_path, monkeypatch, platform, proxy):
    monkeypatch.setattr(sys, "platform", platform)
    path = write_results("train", {"train.memory_ratio": FIGURE}, folder=tmp_path, seeds=[0, 1, 2])
    made = json.loads(path.read_text())
    assert path.name == "train.json" and made["seeds"] == [0, 1, 2] and made["environment"]["versions"]["mlx"]
    assert made["figures"]["train.memory_ratio"].pop("proxy", None) is proxy
    assert made["figures"] == {"train.memory_ratio": FIGURE}


def test_every_wrong_figure_is_named_at_once_and_nothing_is_written(tmp_path):
    wrong = {"a": {**FIGURE, "goal": "small"}, "b": {"value": float("inf")}, "c": FIGURE}
    with pytest.raises(ValueError) as raised:
        write_results("train", wrong, folder=tmp_path)
    assert "figure a has the goal" in str(raised.value) and "figure b has no command" in str(raised.value)
    assert "figure b has the value inf" in str(raised.value) and "figure c" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_body_may_not_replace_what_is_filled_in(tmp_path):
    with pytest.raises(ValueError, match="environment"):
        write_results("train", {}, folder=tmp_path, environment={})


def test_the_same_arrays_make_the_same_file_in_whatever_order_they_come(tmp_path):
    """Digests would differ else between a run that went on from a file and one that was never stopped."""
    names = [f"model.layers.{n}.{part}" for n in range(8) for part in ("lora_a", "lora_b", "m", "v")]
    arrays = {name: mx.full((n + 1,), n) for n, name in enumerate(names)}
    for number, order in enumerate((names, names[::-1], sorted(names, key=lambda name: name[::-1]))):
        write_safetensors(tmp_path / f"{number}.safetensors", {name: arrays[name] for name in order})
    assert len({digest(tmp_path / f"{number}.safetensors") for number in range(3)}) == 1
