"""Data sets as the Hub serves them, read by its own library; from a folder here, for tests have no network."""

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agp import hub
from agp.data import read

KNOWN = {"text", "prompt", "completion", "messages", "notes"}


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A name that the Hub would know."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    load = datasets.load_dataset

    def serve(**splits):
        for split, rows in splits.items():
            folder = tmp_path / "hub/owner/set"
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-0.parquet")
        monkeypatch.setattr("datasets.load_dataset", lambda name, subset: load(str(tmp_path / "hub" / name), subset))
        return "owner/set"

    return serve


def test_rows_come_under_our_names_with_what_is_left_out_said(served):
    rows = [{"question": f"q{i}", "answer": f"a{i}", "id": i} for i in range(3)]
    name = served(train=rows, validation=[{"question": "v", "answer": "w", "id": 9}])
    source = read(name, "qa", {"prompt": "question", "completion": "answer"})
    assert [row.messages[1]["content"] for row in source.splits["train"]] == ["a0", "a1", "a2"]
    assert source.splits["valid"][0].place == "valid:0"
    assert "columns left out: id" in source.notes


def test_turns_have_no_empty_keys(served):
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "name": "z"}]
    source = read(served(train=[{"messages": turns}, {"messages": [turns[0], {"role": "assistant", "content": "v"}]}]))
    messages = [m for split in source.splits.values() for row in split for m in row.messages]
    assert {"role": "user", "content": "x"} in messages and all(None not in m.values() for m in messages)


def test_rows_are_checked_as_those_of_a_file(served):
    with pytest.raises(ValueError, match="train:1: text is ' '; some text is needed"):
        read(served(train=[{"text": "a"}, {"text": " "}]))


def test_columns_must_be_there(served):
    name = served(train=[{"content": "a", "id": 1}])
    with pytest.raises(ValueError, match=r"has the columns \['content', 'id'\]; .* such as columns.text=content"):
        hub.fetch(name, KNOWN, {})
    with pytest.raises(ValueError, match="has no column words; it has content, id"):
        hub.fetch(name, KNOWN, {"text": "words"})
    with pytest.raises(ValueError, match="has the splits validation; one called train is needed"):
        Path("hub/owner/set/train-0.parquet").rename("hub/owner/set/validation-0.parquet")
        hub.fetch(name, KNOWN, {})


def test_what_the_hub_does_not_give_is_one_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="there is no folder nobody/nothing here, and the Hub does not give it"):
        read("nobody/nothing")
