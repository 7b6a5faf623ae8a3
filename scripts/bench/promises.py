"""Measure what routed decoding promises: lossless says what full depth says, and early keeps to its risk.

agp bench promises
agp bench promises --runs runs/tiny --prompts 24 --folder /tmp

Of each run's held-out texts some prompts are answered at full depth, once, and by `lossless` in all manners: the
likeliest and drawn, one at a time and eight of unlike lengths side by side, and with a peer, which is a process of its
own. Where an answer first differs, and what it says there lies within 1e-4 of the best of full depth, it is a tie:
listed, and not held against it. `early` then answers them for every risk that the run has a threshold for, and is not
audited; its promise is kept where the mean over documents of the share of lost tokens is at most the risk.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from agp.artifacts import RESULTS, write_results
from curricula.documents import Prompt
from scripts.asked import some_path
from scripts.bench import promises_early
from scripts.bench.curriculum import made_by, manifests
from scripts.bench.promises_lossless import (
    LONGEST,
    MANNERS,
    NEAR,
    Answer,
    Compared,
    Manner,
    alike,
    compared,
    ends,
    full,
)
from scripts.bench.routed import SEED as ORDER
from scripts.bench.routed import asked
from scripts.demo import Host
from scripts.offers import Peers
from scripts.routes import Opened, opened
from scripts.tokens import fresh, token_of

COMMAND = "agp bench promises"
PROMPTS = 1000
SHOWN = 8  # differences of a manner that are printed


def add_arguments(parser) -> None:
    usual = [Path("runs/tiny"), Path("runs/tiny3n")]
    parser.add_argument("--runs", nargs="+", type=some_path, default=usual, metavar="RUN", help="finished runs")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help=f"of each run (default: {PROMPTS})")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where promises.json goes (default: results/)")


def run(args) -> None:
    if args.prompts < 1:
        raise ValueError(f"--prompts is {args.prompts}; 1 or more is needed")
    known = {root: made_by(root) for root in args.runs}
    for root, (name, stages) in known.items():
        manifests(root, name, stages)
    found = {name: measured(root, name, args.prompts) for root, (name, _) in known.items()}
    print(write(found, args.prompts, args.folder))


def measured(root: Path, name: str, count: int) -> dict[str, Any]:
    given = opened(root)
    dtype = str(given.loaded.model.embed(mx.zeros((1, 1), mx.int32)).hidden.dtype)
    if dtype != "mlx.core.float32":
        raise ValueError(f"{root} computes in {dtype}, where ties are common; give a run in mlx.core.float32")
    prompts = asked(root, given, count)
    if len(prompts) < count:
        print(f"{name} has {len(prompts)} held-out prompts, and {count} were asked for: all are taken", flush=True)
    lossless, early = exact(root, name, given, prompts), {}
    for risk in promises_early.risks(given.heads.limits["revive"]):
        early[risk] = promises_early.measured(given, prompts, risk)
        print(kept(name, risk, early[risk]), flush=True)
    if not early:
        print(f"{name} promises nothing for any risk: early is not measured", flush=True)
    return {"prompts": len(prompts), "lossless": lossless, "early": early}


def exact(root: Path, name: str, given: Opened, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """By manner, and of the prompts those that are answered alike in all of them."""
    answers = {drawn: answered(given, prompts, drawn) for drawn in (False, True)}
    found: dict[Manner, Compared] = {}
    with beside(root, given) as peers:
        for manner in MANNERS:
            beyond = peers.beyond if manner.peer else None
            found[manner] = compared(given, prompts, answers[manner.drawn], manner, beyond)
            print("\n".join(same(name, manner, found[manner])), flush=True)
    return {
        "identical": alike(list(found.values())),
        "manners": {str(manner): listed(of) for manner, of in found.items()},
        "by peer": min(of.away for manner, of in found.items() if manner.peer),
    }


def answered(given: Opened, prompts: Sequence[Prompt], drawn: bool) -> list[Answer]:
    """At full depth, each prompt alone."""
    model, stop, found = given.heads.decoder, ends(given), []
    for n, prompt in enumerate(tqdm(prompts, desc="full depth, drawn" if drawn else "full depth, greedy", leave=False)):
        found.append(full(model, prompt.ids, n, drawn, stop))
        mx.clear_cache()
    return found


@contextmanager
def beside(root: Path, given: Opened) -> Iterator[Peers]:
    """A peer in a process of its own, and the way to it."""
    with TemporaryDirectory(prefix="agp-promises-") as folder:
        file = fresh(Path(folder))
        host = Host("peer", ["--run", str(root), "--port", "0", "--token-file", str(file)])
        try:
            peers = Peers(root, given, host.ready(), token_of(file))
            try:
                yield peers
            finally:
                peers.close()
        finally:
            host.end()


def listed(of: Compared) -> dict[str, Any]:
    places = {name: [one._asdict() for one in some] for name, some in (("ties", of.ties), ("different", of.wrong))}
    return {"identical": of.identical, "drafted": round(of.drafted, 4), "by peer": round(of.away, 4)} | places


def same(name: str, manner: Manner, of: Compared) -> list[str]:
    told = (
        f"{name} lossless, {manner}: {of.identical} of {of.prompts} answers as at full depth, {len(of.ties)} by a tie"
    )
    peer = f", {of.away:.2f} of the others said by the peer" if manner.peer else ""
    lines = [f"{told}; {of.drafted:.2f} of the tokens drafted right{peer}"]
    for one in [*of.wrong, *of.ties][:SHOWN]:
        what = "a tie" if one.tie else "different"
        lines.append(f"  prompt {one.prompt}, token {one.place}: {one.said} where full depth says {one.full} ({what})")
    return lines


def kept(name: str, risk: str, of: dict[str, Any]) -> str:
    low, high = of["interval"]
    told = f"{name} early at {risk}: loss {of['loss']:.4f} [{low:.4f}, {high:.4f}] of {of['documents']} documents"
    return f"{told}, {of['left']:.2f} of the tokens left early: {'kept' if of['kept'] else 'broken'}"


def write(found: dict[str, Any], count: int, folder: Path) -> Path:
    command = {"command": COMMAND if count == PROMPTS else f"{COMMAND} --prompts {count}"}
    identical = {name: of["lossless"]["identical"] for name, of in found.items()}
    away = {name: of["lossless"]["by peer"] for name, of in found.items()}
    figures: dict[str, dict] = {
        "lossless.identical": {"value": identical, "goal": f">= {count}"} | command,
        "lossless.by_peer": {"value": away, "goal": ">= 0.9"} | command,
    }
    shares = {
        f"{name} at {risk}": (of, float(risk)) for name, all_of in found.items() for risk, of in all_of["early"].items()
    }
    if shares:
        value = {label: of["loss"] / risk for label, (of, risk) in shares.items()}
        interval = {label: [end / risk for end in of["interval"]] for label, (of, risk) in shares.items()}
        figures["early.risk_kept"] = {"value": value, "interval": interval, "goal": "<= 1"} | command
    return write_results(
        "promises",
        figures,
        folder=folder,
        what=WHAT,
        config={"prompts": count, "tokens of an answer": LONGEST, "tie": NEAR, "audits": 0},
        seeds={"prompts": ORDER, "draws": "number of the prompt", "bootstrap": promises_early.SEED},
        runs=found,
    )


WHAT = {
    "lossless.identical": "prompts whose answers by lossless are those of full depth in every manner, ties included",
    "lossless.by_peer": "share of tokens of full depth that the peer said where there was one; this host said the rest",
    "early.risk_kept": "mean over documents of the share of tokens that left early and are not what full depth says "
    "after the same text, greedy, by the risk that is promised: kept where it is at most 1",
}
