"""`agp bench promises`: what differs is found and named, a tie is one only where it is, and lost tokens are counted.

Seen to fail when broken: any difference taken for a tie, an answer that goes on unseen, rows with each other's draws,
tokens of full depth counted as lost, windows of one text counted as documents, a risk kept by the interval's lower end.
"""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest

from agp.early import Early
from agp.follow import Full
from agp.generate import generate, make_sampler
from curricula.documents import Prompt
from scripts import cli
from scripts.bench import promises, promises_early
from scripts.bench.promises_early import Told
from scripts.bench.promises_lossless import (
    LONGEST,
    MANNERS,
    NEAR,
    Answer,
    Compared,
    Difference,
    Manner,
    alike,
    compared,
    difference,
    full,
    groups,
)
from scripts.bench.routed import asked
from scripts.routes import opened
from tests import toys
from tests.curricula.run import smoke
from tests.scripts.test_routes import lax
from tests.test_routed import PROMPTS, Margin, toy

ANSWER = Answer([5, 6, 7, 1], [[], [9], [], []])


@pytest.mark.parametrize(
    "said, found",
    [
        ([5, 6, 7, 1], None),
        ([5, 6, 8, 1], Difference(3, 2, 7, 8, tie=False)),
        ([5, 9, 9, 9], Difference(3, 1, 6, 9, tie=True)),
        ([5, 8, 7, 1], Difference(3, 1, 6, 8, tie=False)),
        ([8, 9, 7, 1], Difference(3, 0, 5, 8, tie=False)),
        ([5, 6, 7], Difference(3, 3, 1, None, tie=False)),
        ([5, 6, 7, 1, 2], Difference(3, 4, None, 2, tie=False)),
    ],
    ids=["none", "one", "a tie", "none of those that tie", "the first counts", "too short", "too long"],
)
def test_the_first_difference_is_named_and_is_a_tie_only_where_full_depth_was_undecided(said, found):
    assert difference(3, ANSWER, said) == found


def test_ties_count_as_alike_and_a_prompt_that_differs_anywhere_does_not():
    tie, other, third = (Difference(n, 0, 1, 2, tie=n == 1) for n in (1, 2, 3))
    found = [Compared(5, [tie, other], 0.5, 0), Compared(5, [third], 0.5, 0), Compared(5, [], 0.5, 0)]
    assert [of.identical for of in found] == [4, 4, 5] and found[0].ties == [tie] and found[0].wrong == [other]
    assert alike(found) == 3


def prompt(ids, document="a", source="code") -> Prompt:
    return Prompt(source, document, tuple(ids), False, {})


def test_eight_side_by_side_are_of_unlike_lengths_and_nobody_is_left_out():
    given = [prompt(range(size)) for size in (9, 3, 30, 12, 5, 8, 7, 40, 11, 10, 13)]
    found = groups(given, 4)
    assert sorted(n for group in found for n in group) == list(range(11)) and max(map(len, found)) == 4
    lengths = [[len(given[n].ids) for n in group] for group in found]
    assert all(max(of) > 1.8 * min(of) for of in lengths), lengths
    assert sorted(groups(given, 1)) == [[n] for n in range(11)]


@pytest.mark.parametrize("drawn", [False, True])
def test_what_ties_is_what_lies_within_a_hair_of_what_is_said(drawn):
    """A head with two rows that are the same, and one that is all but the same: chances drawn part them again."""
    mx.random.seed(3)
    model = toys.toy("gemma4", "shares most", tie_word_embeddings=False, max_position_embeddings=512)
    sampler = make_sampler(1.0 if drawn else 0.0, seed=7)
    steps = list(generate(model, PROMPTS[0], max_tokens=LONGEST, sampler=sampler))
    plain = full(model, PROMPTS[0], 7, drawn, set())
    assert plain.ids == [step.token for step in steps] and not any(plain.near)
    first = steps[0].token
    near, far = [id for id in (90, 91, 92) if id != first][:2]
    head = np.array(model.lm_head.weight)
    head[near], head[far] = head[first] * (1 - NEAR / 50), head[first] * (1 - 0.2)
    model.lm_head.weight = mx.array(head)
    found = full(model, PROMPTS[0], 7, drawn, set())
    assert found.ids[0] == first and found.near[0] == ([] if drawn else [near])


@pytest.mark.parametrize("least, some", [(1e9, False), (0.3, True), (-1.0, True)])
def test_tokens_that_left_early_and_are_not_full_depths_are_lost(least, some):
    model = toy("gemma4")
    tap = model.config.num_producers - 1

    def begin(replies):
        return Early(replies, Margin(model, (tap,), least))

    found = promises_early.told(prompt(PROMPTS[0]), model, begin, set())
    texts, left, lost = list(PROMPTS[0]), 0, 0
    for _ in range(LONGEST):
        early = model.unembed(model.blocks(model.embed(mx.array([texts])), stop=tap + 1))[0, -1]
        best = np.sort(np.array(early))
        goes, deep = best[-1] - best[-2] > least, int(np.array(model([texts]).logits[0, -1]).argmax())
        texts.append(int(np.array(early).argmax()) if goes else deep)
        left, lost = left + goes, lost + (goes and texts[-1] != deep)
    assert found == Told("a", "code", LONGEST, left, lost, 0) and (lost > 0) == some
    summed = promises_early.summary([found], 0.01)
    assert summed["kept"] != some and summed["left"] == left / LONGEST, "a router that minds nothing breaks its promise"


def test_full_depth_loses_nothing_and_stops_where_it_should():
    model = toy("gemma4")
    whole = promises_early.told(prompt(PROMPTS[1]), model, Full, set())
    assert whole == Told("a", "code", LONGEST, 0, 0, 0)
    drawn = promises_early.told(prompt(PROMPTS[1]), model, lambda of: Full(of, make_sampler(2.0, seed=1)), set())
    assert drawn.lost == 0 and drawn.unlike > 5, "what did not leave early is not lost, whatever it is"
    (last,) = [step.token for step in generate(model, PROMPTS[1], max_tokens=1)]
    assert promises_early.told(prompt(PROMPTS[1]), model, Full, {last}).tokens == 1


def test_the_unit_is_the_document_however_many_prompts_are_of_it():
    given = [Told("a", "code", 10, 8, 1, 0), Told("a", "code", 10, 8, 1, 0), Told("b", "memory", 5, 0, 0, 1)]
    found = promises_early.summary(given, 0.05)
    assert found["documents"] == 2 and found["loss"] == pytest.approx(0.05) and found["kept"]
    assert found["left"] == 16 / 25 and found["lost"] == 2 and found["unlike at full depth"] == 1
    assert found["interval"] == [0.0, pytest.approx(0.1)] and not found["kept by all of the interval"]
    assert found["loss by source"] == {"code": pytest.approx(0.1), "memory": 0.0}
    assert not promises_early.summary(given, 0.04)["kept"]


def test_figures_hold_a_run_to_the_prompts_asked_for_and_each_risk_to_itself(tmp_path):
    early = {"0.01": {"loss": 0.005, "interval": [0.002, 0.02]}, "0.05": {"loss": 0.06, "interval": [0.05, 0.07]}}
    found = {
        "tiny": {"lossless": {"identical": 999, "by peer": 1.0}, "early": early},
        "smoke": {"lossless": {"identical": 9, "by peer": 0.5}, "early": {}},
    }
    told = json.loads(promises.write(found, promises.PROMPTS, tmp_path).read_text())["figures"]
    assert told["lossless.identical"]["value"] == {"tiny": 999, "smoke": 9}
    assert (told["lossless.identical"]["goal"], told["lossless.identical"]["command"]) == (
        ">= 1000",
        "agp bench promises",
    )
    assert told["early.risk_kept"]["value"] == pytest.approx({"tiny at 0.01": 0.5, "tiny at 0.05": 1.2})
    assert told["early.risk_kept"]["goal"] == "<= 1"
    cli.main(["figures", "--folder", str(tmp_path), "--check"])
    told = json.loads(promises.write({"smoke": found["smoke"]}, 9, tmp_path).read_text())["figures"]
    assert set(told) == {"lossless.identical", "lossless.by_peer"} and told["lossless.identical"]["goal"] == ">= 9"
    assert told["lossless.identical"]["command"] == "agp bench promises --prompts 9"


@pytest.mark.slow
def test_a_run_that_lets_all_go_breaks_its_promise_and_what_is_planted_in_full_depth_is_found(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    given = opened(type(run)(lax(run)))
    chosen = asked(run, given, 9)
    found = promises_early.measured(given, chosen, "0.01")
    assert found["left"] == 1 and found["loss"] > 0.01 and not found["kept"] and found["lost"] > 0
    for manner in (Manner(1), Manner(8, drawn=True)):
        answers = promises.answered(given, chosen, manner.drawn)
        assert compared(given, chosen, answers, manner).differences == []
        assert (ids := answers[4].ids) and (place := len(ids) // 2) >= 0
        answers[4] = Answer([*ids[:place], ids[place] + 1, *ids[place + 1 :]], [[] for _ in ids])
        answers[6] = Answer([answers[6].ids[0] + 1, *answers[6].ids[1:]], [[answers[6].ids[0]]])
        told = compared(given, chosen, answers, manner)
        assert told.wrong == [Difference(4, place, ids[place] + 1, ids[place], False)] and told.identical == 8
        assert [(of.prompt, of.place) for of in told.ties] == [(6, 0)]
        assert "  prompt 4, token" in "\n".join(promises.same("run", manner, told))


@pytest.mark.slow
def test_the_command_measures_a_run_with_a_peer(tmp_path, capsys):
    root = tmp_path / "smoke"
    shutil.copytree(smoke(), root)
    (root / "recipe.json").write_text('{"recipe": "smoke"}')
    words = ["bench", "promises", "--runs", str(root), "--folder", str(tmp_path)]
    assert cli.main([*words, "--prompts", "9"]) == 0
    out, told = capsys.readouterr().out, json.loads((tmp_path / "promises.json").read_text())
    assert told["figures"]["lossless.identical"]["value"] == {"smoke": 9}
    found = told["runs"]["smoke"]["lossless"]
    assert set(found["manners"]) == set(map(str, MANNERS)) and all(
        of["drafted"] > 0 for of in found["manners"].values()
    )
    assert all(of["by peer"] == ("a peer" in name) for name, of in found["manners"].items())
    assert told["figures"]["lossless.by_peer"]["value"] == {"smoke": 1.0}
    assert out.count("9 of 9 answers as at full depth") == len(MANNERS)
    assert "smoke promises nothing for any risk" in out and told["runs"]["smoke"]["early"] == {}
    assert cli.main([*words, "--prompts", "0"]) == 2
    assert "--prompts is 0; 1 or more is needed" in capsys.readouterr().err
