"""What a kernel names is found where it is, by rules a reader could follow; all that is wrong is said at once."""

import json
import re
from pathlib import Path

import pytest

from curricula import examples, kernel
from curricula.features import Features
from curricula.stages import semantic
from curricula.teacher import teacher
from tests.curricula.run import smoke

PAGE = Path(__file__).parents[2] / "docs/kernel.md"


@pytest.fixture(scope="module")
def root():
    return smoke()


@pytest.fixture(scope="module")
def loaded(root):
    return teacher(root / "domain")


def written(tmp_path, *concepts):
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps({"concepts": list(concepts)}))
    return path


def labelled(root, loaded, path, role="heads"):
    features = Features(root / "harvest", role)
    return features, kernel.labels(kernel.read(path), features, loaded.tokenizer, {})


def by_document(features, column):
    return [column[features.document == d] for d in range(len(features.begins))]


def test_the_page_for_users_shows_a_kernel_that_labels_what_it_says(root, loaded, tmp_path):
    (block,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    path = tmp_path / "kernel.json"
    path.write_text(block)
    config = semantic.Config(kernel=str(path), least=1)
    roles, known = semantic.read(config, root / "harvest", loaded, kernel.read(path))
    assert [concept.name for concept in known.concepts] == ["copies", "about a lock", "digit", "asks for code"]
    assert list(known.separation) == ["about a lock"] and 0 <= known.separation["about a lock"] <= 1
    true = roles["heads"].labels.true
    assert true.any(0).all() and not true.all(0).any()


def test_a_pattern_over_documents_holds_in_all_of_those_it_is_found_in(root, loaded, tmp_path):
    path = written(tmp_path, {"name": "r", "type": "bundle", "regex": r"\breturn\b"})
    features, found = labelled(root, loaded, path)
    for d, labels in enumerate(by_document(features, found.true[:, 0])):
        text = loaded.tokenizer.decode(features.of(d, "ids").tolist())
        assert (labels == bool(re.search(r"\breturn\b", text))).all()
    assert found.known.all() and 0 < found.true.mean() < 1


def test_a_pattern_over_tokens_holds_at_the_tokens_read_within_a_match(root, loaded, tmp_path):
    path = written(tmp_path, {"name": "digit", "type": "invariant", "regex": "[0-9]+", "over": "token"})
    features, found = labelled(root, loaded, path)
    hits = total = 0
    for d, labels in enumerate(by_document(features, found.true[:, 0])):
        ids, first = features.of(d, "ids").tolist(), features.of(d, "first")
        plain = [bool(re.search("[0-9]", loaded.tokenizer.decode([i]))) for i in ids[first - 1 : -1]]
        hits, total = hits + (labels == plain).sum(), total + len(labels)
        assert len(labels) == len(plain)
    assert hits == total and found.true.any()


def test_a_match_of_no_letters_is_at_no_token(root, loaded, tmp_path):
    """Where words begin is within a token here and there, and which one that is would be luck."""
    path = written(tmp_path, {"name": "word", "type": "invariant", "regex": r"\b", "over": "token"})
    assert not labelled(root, loaded, path)[1].true.any()


def test_a_field_holds_where_rows_say_so_and_rows_that_are_silent_do_not_count(root, loaded, tmp_path):
    given = {"name": "copy", "type": "primitive", "field": "primitive", "equals": ["copying.copy", "copying.reverse"]}
    features, found = labelled(root, loaded, written(tmp_path, given))
    for d, document in enumerate(features.documents):
        said = document["concepts"].get("primitive", ())
        here = features.document == d
        assert (found.known[here, 0] == bool(said)).all()
        assert (found.true[here, 0] == any(name in ("copying.copy", "copying.reverse") for name in said)).all()
    assert not found.known.all() and found.true.any()


def test_without_a_file_the_kernel_is_what_rows_name(root):
    documents = Features(root / "harvest", "heads").documents
    found = kernel.from_rows(documents)
    named = {(kind, name) for d in documents for kind, names in d["concepts"].items() for name in names}
    assert {(c.type, c.name) for c in found} == named and len(found) == len(named)
    assert [c.type for c in found] == sorted((c.type for c in found), key=semantic.TYPES.index)


def test_examples_that_differ_are_told_apart_and_examples_that_do_not_are_not(loaded):
    code = [f"def f{n}(x):\n    return x + {n}\n" for n in range(8)]
    talk = [f"The owner of door {n} says yes." for n in range(8)]
    states = examples.states(loaded, 4)

    def separation(own, others):
        given = {"examples": {"positive": own, "negative": others}}
        return examples.direction(kernel.Concept("c", "bundle", "examples", given), states)

    apart = separation(code, talk)
    assert apart.separation == 1
    assert (states(code) @ apart.along > apart.limit).all() and not (states(talk) @ apart.along > apart.limit).any()
    assert separation(code, code).separation == 0.5


GOOD = {"name": "x", "type": "primitive", "regex": "a"}


@pytest.mark.parametrize(
    "concepts, said",
    [
        ([GOOD | {"type": "thing"}], "x: type is 'thing'; one of primitive, invariant, bundle is needed"),
        ([{"name": "x", "type": "primitive"}], "x: has nothing to label it; one of regex, field, examples is needed"),
        ([GOOD | {"field": "k", "equals": "v"}], "x: has regex and field to label it"),
        ([GOOD, GOOD], "x: is named 2 times"),
        ([GOOD | {"regex": "("}], "x: regex does not compile: missing"),
        ([GOOD | {"regex": "a*"}], "x: regex matches the empty text"),
        ([GOOD | {"regex": 3}], "x: regex is 3; a text of 1 to 1000 characters"),
        ([GOOD | {"regex": "a" * 1001}], "a text of 1 to 1000 characters"),
        ([GOOD | {"over": "word"}], "x: over is 'word'; document or token is needed"),
        ([GOOD | {"weight": 2}], r"x: has \['weight'\], which regex makes no use of"),
        ([{"name": "x", "type": "bundle", "field": "k"}], "x: equals is None; a text, or a list of texts, is needed"),
        ([{"name": "x", "type": "bundle", "field": "k", "equals": []}], r"x: equals is \[\]"),
        ([{"name": "x", "type": "bundle", "field": ["k"], "equals": "v"}], "x: field is"),
        ([{"name": "x", "type": "bundle", "examples": []}], "x: examples are"),
        (
            [{"name": "x", "type": "bundle", "examples": {"positive": [], "negative": ["a", "b", "c", "d"]}}],
            r"x: positive examples are \[\]; 4 texts or more are needed",
        ),
        ([{"type": "bundle"}, 3], "concept 1: is .*\nconcept 2: is 3; an object with a name, a text, is needed"),
        ([GOOD | {"type": "a", "regex": "("}, GOOD | {"name": "y", "over": 1}], "x: type.*\nx: regex.*\ny: over"),
        ([], "names no concept"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_concept(concepts, said, tmp_path):
    path = written(tmp_path, *concepts)
    with pytest.raises(ValueError, match=said) as caught:
        kernel.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "is no JSON to go by"),
        ('{"concepts": [{"name": "a", "type": "bundle", "name": "b"}]}', "name stands twice in one object"),
        ("[]", r'\{"concepts": \[...\]\} is needed'),
        ('{"concepts": 1}', "is needed"),
        ('{"concepts": [], "more": 1}', "has more beside concepts"),
        ("[" * 100_000, "is no JSON to go by"),
        (" " * 1_000_001, "has 1,000,001 bytes; a kernel has 1,000,000 at most"),
    ],
)
def test_files_that_are_no_kernel_are_refused(text, said, tmp_path):
    path = tmp_path / "kernel.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        kernel.read(path)
    with pytest.raises(ValueError, match="is no file"):
        kernel.read(tmp_path)


def test_concepts_that_label_nothing_or_everything_are_refused_together(root, loaded, tmp_path):
    path = written(
        tmp_path,
        GOOD | {"name": "never", "regex": "zzzzqqqq"},
        GOOD | {"name": "always", "regex": r"\S"},
        {"name": "odd", "type": "bundle", "field": "primitive", "equals": "no.such"},
    )
    with pytest.raises(ValueError, match="never: labels nothing.*\nalways: labels everything.*\nodd: labels nothing"):
        semantic.read(semantic.Config(kernel=str(path)), root / "harvest", loaded, kernel.read(path))


def test_a_kernel_is_known_by_what_it_holds_and_not_by_where_it_lies(tmp_path):
    (tmp_path / "a").mkdir()
    path, copy = written(tmp_path, GOOD), written(tmp_path / "a", GOOD)
    assert semantic.given(semantic.Config(kernel=str(path))) == semantic.given(semantic.Config(kernel=str(copy))) != {}
    copy.write_text(copy.read_text().replace("x", "y"))
    assert semantic.given(semantic.Config(kernel=str(path))) != semantic.given(semantic.Config(kernel=str(copy)))
    assert semantic.given(semantic.Config()) == {} and semantic.PLACES == ("kernel",)


def test_concepts_in_few_documents_are_left_out_and_listed(root, loaded):
    few = semantic.read(semantic.Config(least=2), root / "harvest", loaded, None)[1]
    all_of = semantic.read(semantic.Config(least=1), root / "harvest", loaded, None)[1]
    assert few.left_out and {line["documents"] for line in few.left_out} == {1}
    assert len(few.concepts) + len(few.left_out) == len(all_of.concepts) and not all_of.left_out
