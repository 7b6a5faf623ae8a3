"""The ground truth of the generated families, their splits, and their clean/corrupt pairs."""

import ast
import contextlib
import io
import json
import re
from itertools import islice

import pytest

from curricula import source, tasks_code
from curricula.families import FAMILIES, SHARES, SPLITS, item, items, split_of

SAMPLE = 100


def sample(family, split="pretrain", count=SAMPLE):
    return [item(family, split, index) for index in range(count)]


def both_sides(family, split="pretrain"):
    """(body, answer, operation) of items and of their corrupt twins."""
    for made in sample(family, split):
        yield made.body, made.answer, made.operation
        yield made.corrupt.body, made.corrupt.answer, made.operation


@pytest.mark.parametrize("family", FAMILIES)
def test_an_item_is_a_pure_function_of_family_split_and_index(family):
    assert [item(family, "test", i) for i in range(5)] == [item(family, "test", i) for i in range(5)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", SHARES)
def test_item_and_twin_hash_into_the_split_they_are_emitted_in(family, split):
    for made in sample(family, split, 12):
        assert split_of(family, made.body) == split == split_of(family, made.corrupt.body)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_no_test_body_is_ever_emitted_for_pretraining(family):
    tested = {body for made in sample(family, "test", 60) for body in (made.body, made.corrupt.body)}
    trained = {made.body for made in sample(family, "pretrain", 600)}
    assert not tested & trained


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_spaces_are_large_enough_for_unseen_items(family):
    assert len({made.body for made in islice(items(family, "test"), 50)}) == 50
    assert len({made.body for made in sample(family, "pretrain", 250)}) > 220


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", SPLITS)
def test_the_corrupt_twin_has_the_same_wording_and_another_answer(family, split):
    for made in sample(family, split, 8):
        assert made.corrupt.answer != made.answer
        assert made.body in made.prompt and made.corrupt.body in made.corrupt.prompt
        assert made.prompt.replace(made.body, "") == made.corrupt.prompt.replace(made.corrupt.body, "")


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_short_and_prompts_do_not_end_in_them(family):
    for made in sample(family):
        assert 1 <= len(made.answer) <= 60 and made.answer == made.answer.strip()
        assert made.bundle == f"{made.operation}.{made.invariants[0]}" and made.description.endswith(".")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shift_has_its_own_wordings(family):
    plain = {re.sub(r"\s+", " ", made.prompt.replace(made.body, "@")) for made in sample(family)}
    shifted = {re.sub(r"\s+", " ", made.prompt.replace(made.body, "@")) for made in sample(family, "shift")}
    assert len(plain) >= 3 and len(shifted) >= 2 and not plain & shifted


def test_unknown_families_and_splits_are_errors_that_name_the_known_ones():
    with pytest.raises(ValueError, match="copying"):
        item("poetry", "test", 0)
    with pytest.raises(ValueError, match="pretrain"):
        item("copying", "train", 0)


@pytest.mark.parametrize("split", ["pretrain", "shift"])
def test_sums_and_differences_are_right_and_carries_are_counted(split):
    for made in sample("arithmetic", split):
        first, sign, second = made.body.split()
        a, b = int(first), int(second)
        assert int(made.answer) == {"+": a + b, "-": a - b, "or": max(a, b)}[sign]
        if sign == "+":
            digitwise = sum(map(int, first)) + sum(map(int, second)) - sum(map(int, made.answer))
            assert f"carries_{digitwise // 9}" in made.invariants  # each carry turns ten into one
        if sign == "-":
            digitwise = sum(map(int, second)) + sum(map(int, made.answer)) - sum(map(int, first))
            assert f"borrows_{digitwise // 9}" in made.invariants


@pytest.mark.parametrize("split", ["pretrain", "shift"])
def test_the_interpreter_agrees_about_syntax(split):
    for body, answer, _ in both_sides("code_syntax", split):
        try:
            ast.parse(body)
            assert answer == "ok", body
        except SyntaxError as error:
            assert answer != "ok", body
            assert int(answer.split()[1]) <= max(error.lineno or 0, body.count("\n") + 1)


@pytest.mark.parametrize("split", ["pretrain", "shift"])
def test_the_interpreter_prints_the_answer_of_code_semantics(split):
    for body, answer, _ in both_sides("code_semantics", split):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(body, {})
        assert printed.getvalue().strip() == answer, body


@pytest.mark.parametrize("split", ["pretrain", "shift"])
def test_dead_code_is_what_the_syntax_tree_says(split):
    for body, answer, operation in both_sides("dead_code", split):
        tree = ast.parse(body)
        if operation == "unused":
            nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Name)]
            written = {n.id for n in nodes if isinstance(n.ctx, ast.Store)}
            read = {n.id for n in nodes if isinstance(n.ctx, ast.Load)}
            assert (written - read or {"none"}) == {answer}, body
        else:
            lines = tree.body[0].body
            stop = next((i for i, n in enumerate(lines) if isinstance(n, ast.Return)), len(lines))
            after = lines[stop + 1 :]
            assert answer == (f"line {after[0].lineno}" if after else "none"), body


@pytest.mark.parametrize("split", ["pretrain", "shift"])
def test_renaming_changes_the_tree_as_a_renamer_does(split):
    for body, answer, operation in both_sides("variable_renaming", split):
        *code, request = body.split("\n")
        old, _, new = request.split()
        change = {old: new, new: old} if operation == "swap" else {old: new}
        tree = ast.parse("\n".join(code))
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                node.id = change.get(node.id, node.id)
        assert ast.dump(tree) == ast.dump(ast.parse(answer)), body


def test_a_name_inside_a_string_is_not_renamed():
    state = ("rename", (("a", " = ", "b", ' + "', "'a'", '"'),), "a", "k", ["a", "b"])
    assert tasks_code.render_renaming(state).answer == 'k = b + "a"'


@pytest.mark.parametrize("split", ["pretrain", "shift"])
def test_json_answers_obey_the_schema(split):
    kinds = {"int": int, "str": str, "bool": bool}
    for body, answer, operation in both_sides("json_schema", split):
        first, second = body.split("\n")
        schema = {key: kinds[kind] for key, kind in re.findall(r'"(\w+)": (\w+)', first)}
        record = json.loads(answer if operation == "fill" else second)
        bad = [
            f"missing {k}" if k not in record else f"wrong {k}"
            for k, t in schema.items()
            if type(record.get(k)) is not t
        ]
        if operation == "check":
            assert answer == (bad[0] if bad else "valid") and len(bad) <= 1
        else:
            assert not bad and sorted(str(v).lower() for v in record.values()) == sorted(second.split())


@pytest.mark.parametrize("split", ["pretrain", "shift"])
def test_closing_what_is_open_balances_the_brackets(split):
    def reduced(text):
        before = None
        while before != text:
            before, text = text, re.sub(r"\(\)|\[\]|\{\}", "", text)
        return text

    for body, answer, operation in both_sides("delimiter_tracking", split):
        rest = reduced(body.replace(" ", ""))
        if operation == "close":
            assert rest and not reduced((body + answer).replace(" ", ""))
        else:
            assert answer == (str(len(rest)) if operation == "depth" else "no" if rest else "yes")


def test_copies_reversals_and_successors_are_right():
    for body, answer, operation in both_sides("copying"):
        symbols, _, asked = body.partition(" | ")
        line = symbols.split()
        expected = {
            "copy": line,
            "reverse": line[::-1],
            "after": line[1:][line.index(asked) : line.index(asked) + 1] if asked else [],
        }
        assert answer.split() == expected[operation]


def test_the_gazetteer_gives_each_country_its_own_capital():
    from curricula.tasks_symbols import fact
    from curricula.words import CAPITALS, ENTITIES

    assert sorted(fact("capital", e) for e in ENTITIES) == sorted(CAPITALS)


def test_confidence_follows_the_count_of_reports():
    for body, answer, _ in both_sides("uncertainty_signalling"):
        listed, asked = body.split(" | ")
        heard = [r.split()[1] for r in listed.split(", ") if r.split()[0] == asked]
        counts = sorted((heard.count(c) for c in set(heard)), reverse=True)
        tie = len(counts) > 1 and counts[0] == counts[1]
        sure = "unknown" if not heard else "surely" if len(counts) == 1 else "unsure" if tie else "likely"
        assert answer.split()[0] == sure
        assert sure in ("unknown", "unsure") or answer.split()[1] == max(set(heard), key=heard.count)


def test_a_code_is_told_exactly_when_the_rule_allows_it():
    for body, answer, _ in both_sides("refusal_compliance"):
        listed, rule, request = body.split(" | ")
        codes = dict(entry.split() for entry in listed.split(", "))
        kind, named = rule.split()
        asked = request.split()[1]
        allowed = (named != asked) if kind == "locked" else (named == asked)
        assert answer == (codes[asked] if allowed else "I cannot share that.")


def test_descriptions_have_the_length_asked_for():
    for body, answer, operation in both_sides("verbosity_control"):
        thing, level = body.split(" | ")
        if operation == "count":
            assert len(answer.split()) == int(level.split()[0])
        assert level != "full" or all(word in answer for word in thing.split(", "))


def test_training_source_holds_no_held_out_module():
    recorded = source.recorded()
    kept = {kind: set(recorded[kind].values()) for kind in ("train", "heldout", "shift")}
    assert not kept["train"] & (kept["heldout"] | kept["shift"]) and not kept["heldout"] & kept["shift"]
    for kind in ("heldout", "shift"):
        assert len(source.committed(kind)) == len(recorded[kind]) > 10
