"""Rows of every layout are understood, every fault is named by file and line, and nothing measured is trained on."""

import json
import os

import pytest

from agp.data import leaks, read

CHAT = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
PROMPT = {"prompt": "a?", "completion": "b"}


def folder(path, **files):
    for split, rows in files.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("row", [CHAT, PROMPT, {"text": "a b"}])
def test_each_layout_is_read(row, tmp_path):
    source = read(folder(tmp_path, train=[row], valid=[json.loads(json.dumps(row).replace("b", "c"))]))
    (found,) = source.splits["train"]
    assert found.place == "train.jsonl:1" and found.layout in row
    assert found.text == row.get("text", "") and [m["content"] for m in found.messages] == (
        ["a?", "b"] if not found.text else []
    )


def test_notes_come_before_what_the_first_turn_says(tmp_path):
    source = read(
        folder(
            tmp_path,
            train=[CHAT | {"notes": ["the sky is green", "so is the sea"]}],
            valid=[CHAT],
        )
    )
    assert source.splits["train"][0].messages[0]["content"] == "Notes:\n- the sky is green\n- so is the sea\n\na?"


FAULTS = {
    "no JSON": ("{", "train.jsonl:2: not JSON"),
    "a list": ([1], "train.jsonl:2: a list where an object was due"),
    "no layout": ({"question": "?"}, "train.jsonl:2: has ['question']; messages, prompt and completion, or text"),
    "a key without effect": (PROMPT | {"label": 1}, "has ['label'] besides prompt"),
    "an empty text": ({"text": "  "}, "text is '  '; some text is needed"),
    "no text": ({"prompt": 3, "completion": "b"}, "prompt is 3; some text"),
    "no turns": ({"messages": []}, "messages is []; a list of turns"),
    "a turn that is none": ({"messages": ["hi"]}, "turn 1 is 'hi'; a role"),
    "an unknown role": ({"messages": [{"role": "bot", "content": "x"}]}, "turn 1 is {'role': 'bot'"),
    "an empty turn": ({"messages": [{"role": "user", "content": ""}]}, "the content of turn 1 is ''"),
    "no assistant": ({"messages": [{"role": "user", "content": "x"}]}, "no turn is the assistant's"),
    "another layout": (
        {"text": "x"},
        "layouts are mixed: 2 rows of prompt (first train.jsonl:1), 1 rows of text (first train.jsonl:2)",
    ),
    "notes that are none": (PROMPT | {"notes": "x"}, "notes are 'x'; a list of texts"),
    "half a character": ({"prompt": "a\ud800b", "completion": "c"}, "train.jsonl:2: 'utf-8' codec"),
    "a document that is none": (PROMPT | {"document": 3}, "document is 3"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_row_is_named_by_file_and_line(name, tmp_path):
    row, said = FAULTS[name]
    rows = [PROMPT, row, {"prompt": "other", "completion": "c"}]
    with pytest.raises(ValueError) as refused:
        read(folder(tmp_path, train=rows))
    assert said in str(refused.value)


def test_all_faults_are_one_error(tmp_path):
    with pytest.raises(ValueError, match="(?s)train.jsonl:1: .*train.jsonl:3: .*... and 18 more"):
        read(folder(tmp_path, train=["{", PROMPT, *["["] * 29]))


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(ValueError, match="train.jsonl:1: not UTF-8"):
        read(tmp_path)


def test_a_folder_without_rows_says_what_is_there(tmp_path):
    (tmp_path / "data.json").touch()
    with pytest.raises(ValueError, match=r"no train.jsonl, it holds \['data.json'\]"):
        read(tmp_path)
    with pytest.raises(ValueError, match="nowhere is no folder here"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="data.json is a file, and the folder that holds train.jsonl is needed"):
        read(tmp_path / "data.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no train.jsonl, it is empty"):
        read(tmp_path / "empty")
    os.mkfifo(tmp_path / "train.jsonl")  # to open it would be to wait for ever
    with pytest.raises(ValueError, match="train.jsonl is no plain file"):
        read(tmp_path)


def test_what_is_measured_must_not_be_trained_on(tmp_path):
    with pytest.raises(ValueError, match="valid.jsonl:1: is in train.jsonl:1 too"):
        read(folder(tmp_path, train=[PROMPT], valid=[PROMPT]))
    one, other = PROMPT | {"document": "d"}, {"prompt": "x", "completion": "y", "document": "d"}
    with pytest.raises(ValueError, match="test.jsonl:1: is in train.jsonl:1 too"):
        read(folder(tmp_path, train=[one], valid=[{"prompt": "v", "completion": "w"}], test=[other]))


def test_where_nothing_is_held_out_documents_are(tmp_path):
    rows = [{"text": f"{i}", "document": f"d{i // 3}"} for i in range(300)]
    source = read(folder(tmp_path, train=rows))
    train, valid = ({row.document for row in source.splits[s]} for s in ("train", "valid"))
    assert not train & valid and len(train | valid) == 100 and 1 <= len(valid) <= 15
    assert f"no valid.jsonl: {3 * len(valid)} of 300 rows are held out, by document" in source.notes
    again = read(tmp_path)
    assert [r.place for r in again.splits["valid"]] == [r.place for r in source.splits["valid"]]


def test_two_documents_are_enough_to_hold_one_out(tmp_path):
    source = read(folder(tmp_path, train=[{"text": "x"}, {"text": "y"}]))
    assert len(source.splits["train"]) == len(source.splits["valid"]) == 1
    assert "one document only" in read(folder(tmp_path, train=[{"text": "x"}])).notes[0]


def test_rows_said_twice_are_counted(tmp_path):
    source = read(folder(tmp_path, train=[PROMPT] * 3, valid=[{"prompt": "v", "completion": "w"}]))
    assert "2 rows of train.jsonl say what another one says" in source.notes


def test_the_digest_sees_every_file(tmp_path):
    first = read(folder(tmp_path, train=[PROMPT], valid=[{"prompt": "v", "completion": "w"}])).digest
    assert first != read(folder(tmp_path, train=[PROMPT, {"prompt": "n", "completion": "m"}])).digest


def test_notes_may_come_before_a_turn_without_words(tmp_path):
    turns = [{"role": "user", "tool_calls": [{"name": "f"}]}, {"role": "assistant", "content": "y"}]
    source = read(folder(tmp_path, train=[{"messages": turns, "notes": ["it rains"]}]))
    assert source.splits["train"][0].messages[0]["content"] == "Notes:\n- it rains\n\n"


def test_an_empty_valid_file_is_said(tmp_path):
    assert "valid.jsonl is empty: nothing is held out" in read(folder(tmp_path, train=[PROMPT], valid=[])).notes


def test_what_one_source_holds_out_another_must_not_train_on(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    one = read(folder(tmp_path / "a", train=[PROMPT], valid=[{"prompt": "x", "completion": "y"}]), "a")
    other = read(folder(tmp_path / "b", train=[{"prompt": "x", "completion": "y"}], valid=[PROMPT]), "b")
    assert leaks([one]) == []
    assert leaks([one, other]) == [
        "a, valid.jsonl:1: is in b, train.jsonl:1 too",
        "b, valid.jsonl:1: is in a, train.jsonl:1 too",
    ]
