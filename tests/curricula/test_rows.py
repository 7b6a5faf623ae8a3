"""A user's rows are divided by document, each content once, and every role has some."""

import json

import pytest

from curricula.stages import rows


def folder(path, **files):
    path.mkdir(parents=True, exist_ok=True)
    for split, found in files.items():
        (path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, found)))
    return path


def chat(i, **more):
    return {"messages": [{"role": "user", "content": f"q{i}?"}, {"role": "assistant", "content": f"a{i}"}], **more}


def divided(where, out, **more):
    config = rows.Config(data={"mine": str(where)}, general={"test": 1}, **more)
    return rows.run(config, {}, out, None), {role: rows.read(out, role)["mine"] for role in rows.ROLES}


def test_every_row_has_one_role_and_documents_stay_whole(tmp_path):
    given = [chat(i, document=f"d{i // 3}", concepts={"topic": f"t{i % 2}"}) for i in range(900)]
    where = folder(tmp_path / "in", train=[*given, chat(0, document="again")])
    metrics, found = divided(where, tmp_path / "out")
    said = [row.messages[1]["content"] for of in found.values() for row in of]
    assert sorted(said) == sorted(f"a{i}" for i in range(900)) and metrics["train"] == len(found["train"])
    homes = [{row.document for row in of} for of in found.values()]
    assert sum(map(len, homes)) == len(set().union(*homes))
    for role, share in rows.SHARES.items():
        assert abs(len(found[role]) / 900 - share / 100) < 0.08
    assert found["test"][0].concepts["topic"][0] in ("t0", "t1")


def test_what_the_user_holds_out_keeps_its_role(tmp_path):
    train, valid, test = ([chat(f"{name}{i}") for i in range(200)] for name in "abc")
    _, found = divided(folder(tmp_path / "in", train=train, valid=valid[:5], test=test[:5]), tmp_path / "out")
    assert {row.messages[0]["content"][1] for row in found["heads"]} == {"a"}
    assert "b" in {row.messages[0]["content"][1] for row in found["valid"]}
    assert sum(row.messages[0]["content"][1] == "c" for row in found["test"]) == 5


def test_too_few_documents_are_refused_with_what_is_empty(tmp_path):
    where = folder(tmp_path / "in", train=[chat(i) for i in range(4)])
    with pytest.raises(ValueError, match="mine has too few documents: none fell to .*give more rows"):
        divided(where, tmp_path / "out")


@pytest.mark.parametrize(
    "more, said",
    [
        ({"shares": {"train": 90}}, "shares add up to 90"),
        ({"shares": {"trian": 100}}, "shares names trian"),
        ({"made": {"train": 1}}, "data and made are both given"),
    ],
)
def test_settings_that_make_no_sense_are_refused(more, said):
    assert said in "; ".join(rows.faults(rows.Config(data={"mine": "in"}, **more)))


def test_rows_are_understood_without_a_folder_as_they_would_be_read(tmp_path):
    given = [chat(i, concepts={"topic": f"t{i % 2}", "tags": ["a", "b"]}, notes=["n"]) for i in range(300)]
    where = folder(tmp_path / "in", train=given)
    _, read = divided(where, tmp_path / "out")
    found = rows.understood(rows.Config(data={"mine": str(where)}, general={"test": 1}))
    for role in rows.ROLES:
        assert [row._replace(place="") for row in found[role]["mine"]] == [row._replace(place="") for row in read[role]]
