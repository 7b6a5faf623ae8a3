"""`agp bench carry`: passes are counted as they are run, and priced as they should be.

Seen to fail when broken: a pass that is not counted, positions that are not, and a recorder that stays.
"""

from pathlib import Path

import pytest

from agp.audit import Audit
from agp.follow import follow
from agp.generate import greedy
from agp.replies import Replies
from scripts import cli
from scripts.bench import carried
from scripts.bench.carried import Parts, read
from scripts.bench.passes import Pass, Recorded
from scripts.bench.promises_lossless import Drafting
from scripts.routes import opened, way
from tests.curricula.run import smoke
from tests.scripts.test_routes import lax

PROMPT = list(range(5, 30))


def said(given, mode):
    audit = Audit(0.05, 0.0) if mode == "early" else None
    replies = Replies.begun(given.heads.decoder, [PROMPT])
    going = way(given, mode, replies, greedy, audit=audit, pace=Drafting(), watching=False)
    return list(follow(going, max_tokens=20))


@pytest.mark.parametrize("mode", ["full", "early", "lossless"])
def test_what_is_recorded_is_what_was_run_and_changes_nothing(mode, tmp_path):
    given = opened(Path(lax(tmp_path)) if mode == "early" else smoke())
    wanted = [token.id for token in said(given, mode)]
    with Recorded(given.heads) as seen:
        tokens = said(given._replace(heads=seen.heads), mode)
    assert [token.id for token in tokens] == wanted
    assert not {"blocks", "head"} & vars(given.heads.decoder).keys()
    last = given.heads.decoder.config.num_layers - 1
    passes = {what: [of.positions for of in seen.passes if of.what == what] for what in Parts._fields}
    passes["below"] = passes["below"][1:]  # the prompt
    if mode == "full":
        assert passes == {"below": [1] * 20, "above": [1] * 20, "head": [1] * 20, "look": []}
    if mode == "early":
        assert passes["below"] == passes["look"] == passes["head"] == [1] * 20 and passes["above"] == []
    if mode == "lossless":
        rounds = sum(token.block == last for token in tokens) + (tokens[-1].block != last)  # the last one is cut short
        assert len(passes["above"]) == rounds and sum(passes["above"]) >= 20
        assert len(passes["head"]) == rounds + len(passes["look"])


def test_a_pass_costs_what_it_reads_and_more_at_several_positions():
    parts = Parts(below=100, above=300, look=10, head=50)
    passes = [Pass("below", 3), Pass("look", 3), Pass("head", 1), Pass("above", 2)]
    assert parts.whole == 450 and read(passes, parts, [1, 1, 1]) == 460
    assert read(passes, parts, [1, 1.5, 2]) == 200 + 20 + 50 + 450


def test_a_published_model_has_the_bytes_of_its_blocks():
    """Gemma 4 E2B: 2.28 billion multiplications a token, .18 of them in the head, fifteen blocks below."""
    told = carried.priced("tiny", {"lossless": [(2, [Pass("below", 1), Pass("above", 1), Pass("head", 1)] * 2)]})
    assert told["ways"]["lossless"]["ratio_by_memory"] == 1.0
    assert 1200 < sum(told["megabytes"][what] for what in ("below", "above", "head")) < 1400
    assert 0.17 < told["megabytes"]["head"] / 1282 < 0.18 and 0.01 < told["overhead"] < 0.02
    assert told["growth"][0] == 1.0


def test_a_run_that_no_published_model_is_like_is_refused(capsys):
    assert cli.main(["bench", "carry", "--runs", "tests"]) == 2
    assert "tests is not a run of tiny or tiny3n" in capsys.readouterr().err
