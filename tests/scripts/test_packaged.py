"""`--heads coreml`: what the smoke run's package says, by numpy in half precision, decides as MLX does but in ties.

MLX and the package are asked beside each other, and text goes on by what MLX says. The smoke run certifies nothing, so
thresholds are put where about half leave.

Seen to fail when broken: keys handed over that a position may not see, or another row's; positions before in the wrong
order; hope or mixing of the tap before, what is said of plain states; a draft that full depth does not judge; digests
of files or stages not looked at; a reply longer than there is room for.
"""

import json
import platform
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from agp.early import Early
from agp.follow import Token, Way, follow
from agp.generate import generate, make_sampler
from agp.lossless import Lossless
from agp.replies import Replies
from export import blob, device, evaluate, folder
from export.asking import Begun, Package
from export.decisions import TIES
from heads.bundle import Asked, Bundle, Drafter, Router
from heads.trajectory import Carried
from scripts import cli, packaged
from scripts.routes import MOST, Opened
from scripts.serve.engine import Opened as Served
from tests.curricula.run import exported
from tests.scripts.test_routes import PROMPT, lax
from tests.scripts.test_serve import Running
from tests.test_routed import Parrot

pytestmark = pytest.mark.slow
RISK, COUNT = "0.01", 12
TASKS = ("Reverse: a b c", "What does this print?\nx = 9\nx = x * 7\nprint(x)", "Sort: 9 2 5", "Is 12 or 7 larger?")
TIED = 0.05  # of logits: states that are read in half precision


@cache
def opened() -> Opened:
    run, made = exported()
    return packaged.opened(Namespace(heads="coreml", run=run, export=made))


@cache
def prompts() -> list[tuple[int, ...]]:
    tokenizer: Any = opened().loaded.tokenizer
    return [tuple(tokenizer.chat([{"role": "user", "content": task}])) for task in TASKS]


class Both(NamedTuple):
    """What is carried for MLX, and for the package."""

    tap: int
    sum: mx.array
    state: Any
    known: Any
    before: mx.array


class Met(NamedTuple):
    """At a tap, what both said, B n each, and by how much a token was ahead."""

    tap: int
    hope: tuple[np.ndarray, np.ndarray]
    leave: tuple[np.ndarray, np.ndarray]
    id: tuple[np.ndarray, np.ndarray]
    ahead: np.ndarray
    off: dict[str, float]  # how far apart at most, by what was said


class Beside:
    def __init__(self, heads: Bundle):
        self.mlx, self.package, self.met = heads._replace(by=None), heads.by, list[Met]()
        self.heads = heads._replace(by=self)

    def begun(self, before):
        return Both(*self.mlx.begun(before), before)

    def ask(self, carried, states, place, shared):
        ours = self.mlx.ask(Carried(*carried[:4]), states, place, shared)
        theirs = self.package.ask(Begun(carried.tap, carried.before), states, place, shared)
        self.met.append(self.compared(ours, theirs))
        return ours._replace(carried=Both(*ours.carried, carried.before))

    def compared(self, ours: Asked, theirs: Asked) -> Met:
        (read, look), (other, seen) = ours.look(), theirs.look()
        assert theirs.carried.tap == ours.carried.tap
        logits, more = (np.array(self.mlx.decoder.head(of)) for of in (read, other))
        top = np.sort(logits, axis=-1)
        off = {name: apart(getattr(look.told, name), getattr(seen.told, name)) for name in look.told._fields}
        off |= {"read": apart(read, other) / float(mx.abs(read).max()), "mixing": apart(look.weights, seen.weights)}
        hope, leave = (ours.hope, theirs.hope), (look.told.leave, seen.told.leave)
        both = [tuple(map(np.array, of)) for of in (hope, leave)]
        ids = (logits.argmax(-1), more.argmax(-1))
        return Met(ours.carried.tap, *both, ids, top[..., -1] - top[..., -2], off)

    def concepts(self, state):
        assert self.package.concepts(state) == (found := self.mlx.concepts(state))
        return found


def apart(a: mx.array, b: mx.array) -> float:
    assert a.shape == b.shape
    return float(mx.abs(a - b).max())


def turned(met: Sequence[Met], heads: Bundle) -> tuple[int, int]:
    """How many decisions and tokens that follow from them MLX makes otherwise; none but in a tie."""
    limit: Any = heads.limits["revive"][RISK]
    decisions = tokens = 0
    for of in met:
        gate = heads.gate[of.tap]
        leaves = [(of.hope[n] >= gate) & (of.leave[n] >= limit) & (of.tap in heads.exits) for n in range(2)]
        tie = (np.abs(of.hope[0] - gate) <= TIES["look"]) | (np.abs(of.leave[0] - limit) <= TIES["revive"])
        assert (tie | (leaves[0] == leaves[1])).all(), of
        other = leaves[0] & (of.id[0] != of.id[1])
        assert (of.ahead[other] <= TIED).all(), of
        decisions, tokens = decisions + int((leaves[0] != leaves[1]).sum()), tokens + int(other.sum())
    return decisions, tokens


def said(way: Way, rows: int = 1, count: int = COUNT) -> list[list[Token]]:
    found: list[list[Token]] = [[] for _ in range(rows)]
    for token in follow(way, max_tokens=count):
        found[token.row].append(token)
    return found


def early(heads: Bundle, rows: Sequence[Sequence[int]]) -> Early:
    return Early(Replies.begun(heads.decoder, rows), Router(heads, RISK))


def lossless(heads: Bundle, rows: Sequence[Sequence[int]], **how: Any) -> Lossless:
    """Most of what is proposed is right; about half of it the tap is sure enough to replace by its own draft."""
    replies = Replies.begun(heads.decoder, rows, slack=MOST + 1)
    parrot = Parrot([[*prompt, *full(prompt)] for prompt in prompts()])
    limit: Any = halved().limits["revive"][RISK]
    return Lossless(replies, Drafter(heads), proposer=parrot, most=MOST, least=limit, **how)


@cache
def full(prompt: tuple[int, ...], **how: Any) -> list[int]:
    return [step.token for step in generate(opened().loaded.model, prompt, max_tokens=COUNT, stop=(), **how)]


@cache
def halved() -> Bundle:
    """About half have hope at each tap, and half of those would leave."""
    heads = opened().heads
    never = Beside(heads._replace(exits=(0, 2), gate=(-np.inf,) * len(heads.taps), limits={"revive": {RISK: 1e9}}))
    said(early(never.heads, prompts()), len(prompts()))
    of = [[met for met in never.met if met.tap == tap] for tap in range(3)]
    gate = [float(np.median(np.concatenate([met.hope[0] for met in some]))) for some in of]
    limit = float(np.median(np.concatenate([met.leave[0] for met in (*of[0], *of[2])])))
    return never.heads._replace(gate=(*gate, np.inf), limits={"revive": {RISK: limit}}, by=heads.by)


def test_what_the_package_says_of_texts_side_by_side_is_what_heads_say_in_mlx():
    """Lossless takes back drafts, so that rows have holes, and early lets rows go on alone."""
    ties, shapes = {"hope": TIES["look"], "leave": TIES["revive"], "route": TIES["route"], "read": 0.01}, set()
    for way in (lossless, early):
        beside = Beside(halved())
        said(way(beside.heads, prompts()), len(prompts()))
        worst = {name: max(met.off[name] for met in beside.met) for name in beside.met[0].off}
        assert all(off <= ties.get(name, 0.02) for name, off in worst.items()), worst
        shapes |= {met.leave[0].shape for met in beside.met}
        turned(beside.met, beside.heads)
    assert len(shapes) > 4 and max(size for _, size in shapes) > 3


def test_every_decision_of_early_is_that_of_mlx_but_in_a_tie_and_answers_are_equal_where_none_turned():
    equal = 0
    for prompt in prompts():
        beside = Beside(halved())
        ((*ours,),) = said(early(beside.heads, [prompt]))
        ((*theirs,),) = said(early(halved(), [prompt]))
        assert len({token.block for token in ours}) > 1
        if turned(beside.met, beside.heads) == (0, 0):
            assert [(of.id, of.block) for of in ours] == [(of.id, of.block) for of in theirs]
            equal += 1
    assert equal >= len(prompts()) / 2


def test_lossless_is_full_depth_token_by_token():
    wanted, drafted = [full(prompt) for prompt in prompts()], 0
    for rows in (prompts()[:1], prompts()):
        found = said(lossless(opened().heads, rows), len(rows))
        assert [[token.id for token in row] for row in found] == wanted[: len(rows)]
        drafted += sum(token.seen is not None for row in found for token in row)
    assert drafted > 5
    drawn = make_sampler(1.0, 0.9, seed=3)
    ((*row,),) = said(lossless(opened().heads, prompts()[1:2], sampler=drawn))
    assert [token.id for token in row] == full(prompts()[1], sampler=drawn)


def test_lossless_is_full_depth_whatever_the_package_says():
    run, made = exported()
    inputs, widths = (folder.manifest(made)[name]["one"] for name in ("inputs", "outputs"))
    rng = np.random.default_rng(0)
    noise = Package(opened().heads, lambda feed: {name: rng.normal(size=n) for name, n in widths.items()}, inputs)
    found = said(lossless(opened().heads._replace(by=noise), prompts()), len(prompts()))
    assert [[token.id for token in row] for row in found] == [full(prompt) for prompt in prompts()]


@pytest.fixture
def say(capsys):
    def say(*words: str) -> tuple[int, str, str]:
        code = cli.main(["generate", *PROMPT, *words])
        return code, *capsys.readouterr()

    return say


@pytest.mark.parametrize("mode, told", [("early", "vitality"), ("lossless", "concepts")])
def test_agp_generate_says_who_computes_and_each_token_is_told_of_as_by_mlx(mode, told, say, tmp_path):
    (tmp_path / "run").mkdir()
    run, found = ["--run", lax(tmp_path / "run"), "--mode", mode, "--trace", str(tmp_path / "trace")], []
    for words in ([], ["--heads", "coreml", "--export", str(exported()[1])]):
        code, text, err = say(*run, *words)
        found.append([json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()])
        lines = [line for line in err.splitlines() if line.startswith("heads: ")]
        assert code == 0 and text.strip() and len(lines) == bool(words)
    assert lines[0].startswith(f"heads: {exported()[1]}, by numpy in half precision")
    assert any(line[told] for line in found[0])
    for ours, theirs in zip(*found, strict=True):
        for name in ("token", "route", "block", "concepts"):
            assert ours[name] == theirs[name], name
        for name in ("vitality", "mixing"):
            assert ours[name] == (None if theirs[name] is None else pytest.approx(theirs[name], abs=2e-3))


def test_named_concepts_are_those_of_mlx():
    heads = opened().heads
    states = 3 * mx.random.normal((1, 24, heads.names.config.state))
    found = heads.asking.concepts(states)
    assert found == heads.concepts(states) and len(set(found)) > 3


def test_a_server_answers_by_the_package_and_refuses_what_it_has_no_room_for():
    given, room = opened(), len(prompts()[0]) + 1
    with (
        Running(lambda: Served(*given._replace(heads=given.heads._replace(room=room)))) as running,
        running.client() as client,
    ):
        ask = partial(client.chat.completions.create, model="tiny", temperature=0)
        short: Any = [{"role": "user", "content": TASKS[0]}]
        found = {
            mode: ask(messages=short, max_tokens=2, extra_body={"agp": {"mode": mode}}) for mode in ("full", "lossless")
        }
        assert found["lossless"].choices == found["full"].choices
        cut = ask(messages=short, max_tokens=60, extra_body={"agp": {"mode": "lossless"}})
        assert cut.choices[0].finish_reason == "length" and cut.usage.total_tokens == room + 1
        body = {"model": "tiny", "messages": [{"role": "user", "content": "word " * 40}], "agp": {"mode": "lossless"}}
        status, _, told = running.ask("POST", "/v1/chat/completions", json.dumps(body).encode())
        assert (
            status == 400
            and f"and lossless takes {room} here: `agp export --room` makes heads for more".encode() in told
        )
        assert running.ask("POST", "/v1/chat/completions", json.dumps(body | {"agp": {}}).encode())[0] == 200


def test_on_a_mac_core_ml_is_asked(monkeypatch):
    """Here by one that stands in for it."""
    run, made = exported()
    asked = []

    class Machine:
        def compile(self, package, home):
            assert home.is_dir()
            return package

        def open(self, compiled, entry, unit):
            asked.append((entry, unit))
            program = evaluate.load(compiled)

            def model(feed):
                assert all(of.dtype == np.float16 for of in feed.values())
                return evaluate.run(program, entry, feed, exact=False)

            return model

    monkeypatch.setattr(device, "HERE", True)
    monkeypatch.setattr(device, "Mac", Machine)
    say, how = packaged.saying(made)
    by = Package(opened().heads, say, folder.manifest(made)["inputs"]["one"])
    assert asked == [("one", "CPU_AND_NE")] and how == "by Core ML, on the CPU and the Neural Engine"
    states = mx.random.normal((1, 2, opened().heads.names.config.state))
    assert by.concepts(states) == opened().heads.asking.concepts(states)


@pytest.mark.parametrize(
    "words, what",
    [
        (["--model", "tiny-gemma4", "--heads", "coreml"], "--heads coreml needs the heads of a run; give --run"),
        (["--run", "RUN", "--heads", "coreml"], "--heads coreml is for --mode early or lossless"),
        (["--run", "RUN", "--export", "MADE"], "--export is for --heads coreml"),
        (["HEADS", "--max-tokens", "200"], "17 tokens and 200 may follow; the export takes texts of 155: give fewer"),
        (["HEADS", "--max-tokens", "200"], "agp export RUN --room 222 --out DIR`"),
        (["HEADS", "--export", "tests"], "there is no export at tests; `agp export RUN --out tests` makes one"),
        (["HEADS", "--export", "DAMAGED"], "has other bytes than were written; copy the folder again, or export"),
        (["HEADS", "--export", "OTHER"], "as it is: calibrate is another, more is not there; `agp export RUN --out"),
    ],
)
def test_what_cannot_be_is_one_line(say, tmp_path, words, what):
    run, made = exported()
    places = {
        "RUN": str(run),
        "MADE": str(made),
        "DAMAGED": str(tmp_path / "damaged"),
        "OTHER": str(tmp_path / "other"),
    }
    for name in ("DAMAGED", "OTHER"):
        if name in words:
            shutil.copytree(made, places[name])
    if "DAMAGED" in words:
        (tmp_path / "damaged" / folder.PACKAGE / blob.WEIGHTS).write_bytes(b"x")
    if "OTHER" in words:
        told = folder.manifest(made)
        folder.write(tmp_path / "other", told | {"stages": told["stages"] | {"calibrate": "x", "more": "y"}})
    heads = ["--run", str(run), "--mode", "lossless", "--heads", "coreml"]
    heads += [] if "--export" in words else ["--export", str(made)]
    code, out, err = say(
        *(heads if words[0] == "HEADS" else []), *(places.get(word, word) for word in words if word != "HEADS")
    )
    assert code == 2 and out == "" and what.replace("RUN", str(run)) in err.splitlines()[-1]


def test_the_export_of_a_run_is_looked_for_in_it(say):
    run, _ = exported()
    code, _, err = say("--run", str(run), "--mode", "lossless", "--heads", "coreml")
    assert code == 2 and f"there is no export at {run / 'export'}; `agp export {run}` makes one" in err


def test_an_older_mac_is_told_what_it_lacks(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("14.6", ("", "", ""), "arm64"))
    with pytest.raises(ValueError, match="--heads coreml needs macOS 15, and this is 14.6; use mlx"):
        packaged.belonging(*reversed(exported()))
