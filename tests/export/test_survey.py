"""The table of ranges holds what states really reach, streams included, and says what half precision makes of it."""

import json

import mlx.core as mx
import numpy as np
import pytest

from agp.sites import Site, record
from export.survey import largest
from scripts import cli, ranges
from tests.toys import text, toy


@pytest.mark.parametrize("family", ["gemma4", "gemma3n"])
def test_of_each_block_the_largest_of_all_positions_and_texts(family):
    model, tokens = toy(family, "shares some"), np.array(text())
    sites, wanted = [Site(block, "block") for block in range(model.config.num_layers)], []
    for row in tokens:
        states = {}
        model.blocks(model.embed(mx.array(row)[None]), visit=record(states, sites))
        wanted.append([float(mx.abs(states[site]).max()) for site in sites])
    np.testing.assert_allclose(largest(model, list(tokens)), np.max(wanted, axis=0), rtol=1e-6)


def test_the_command_says_it_of_a_model_and_texts(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.txt").write_text("def mean(values):\n    return sum(values) / len(values)\n")
    words = ["ranges", "tiny-gemma4", "--texts", str(tmp_path / "a.txt"), "--dtype", "float32"]
    assert cli.main([*words, "--json"]) in (0, None)
    found = json.loads(capsys.readouterr().out)
    assert found["texts"] == 1 and len(found["blocks"]) == 12 and all(0 < size < 1000 for size in found["blocks"])
    monkeypatch.setattr(ranges, "HALF", min(found["blocks"]))
    cli.main(words)
    said = capsys.readouterr().out
    assert said.count("beyond half precision") == 11 and f"block   0 {found['blocks'][0]:>12,.1f}" in said


def test_what_cannot_be_read_is_said(tmp_path, capsys):
    (tmp_path / "b.txt").write_bytes(b"abc\xff")
    (tmp_path / "empty.txt").write_text("\n")
    for words, told in (
        (["--tokens", "0"], "--tokens is 0; 1 or more is needed"),
        (["--texts", str(tmp_path / "none")], "none is not there"),
        (["--texts", str(tmp_path)], "is a folder; a file is needed"),
        (["--texts", str(tmp_path / "empty.txt")], "empty.txt has no text in it"),
        (["--texts", str(tmp_path / "b.txt")], "is no text: byte 3 is not UTF-8"),
    ):
        assert cli.main(["ranges", "tiny-gemma4", *words]) == 2
        assert told in capsys.readouterr().err
