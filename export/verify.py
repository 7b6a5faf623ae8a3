"""Whether a saved package says what it was described to say: one line a pair, all outputs behind it.

An output is judged by its peak error and PSNR; where it hangs on decisions, at positions where these were the same, and
decisions are judged by themselves. A pair passes if every output is near enough and no decision turned but in a tie.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from export import decisions, evaluate
from export.decisions import Change
from export.ops import Entry, Plain
from export.ranges import Seen
from export.sample import Part, joined, positions

GOALS = {"mlx": 90.0, "exact": 60.0, "half": 60.0}  # decibels, the least of any output
DECIDED = ("size",)  # outputs that are decisions and nothing else

Run = Callable[[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]  # (entry, feeds) -> outputs, as columns


class Output(NamedTuple):
    entry: str
    name: str
    peak: float  # largest error by the largest value
    psnr: float  # decibels
    cosine: float
    positions: int  # that were judged


class Verdict(NamedTuple):
    pair: str
    outputs: list[Output]
    changes: dict[str, Change]
    passed: bool

    @property
    def worst(self) -> Output:
        return min(self.outputs, key=lambda of: of.psnr)


def compare(pair: str, run: Run, parts: Mapping[str, Part], rules: Mapping[str, Any]) -> Verdict:
    """Against what was described."""
    outputs: list[Output] = []
    changes: dict[str, Change] = {}
    for entry, part in parts.items():
        other = spoken(run, entry, part)
        if odd := other.keys() ^ part.said.keys():
            raise ValueError(f"{entry} says other things than it was described to: {', '.join(sorted(odd))}")
        same = {}
        if part.inner:
            same = decisions.alike(rules, part.said, other)
            for name, of in decisions.changes(rules, part.said, part.inner, other).items():
                changes[name] = Change(*(a + b for a, b in zip(of, changes.get(name, (0, 0, 0)), strict=True)))
        for name, truth in part.said.items():
            if not name.startswith(DECIDED):
                at = same.get(name, np.ones(len(truth), bool))
                outputs.append(judged(entry, name, truth[at], other[name][at]))
    near = all(of.psnr >= GOALS[pair] for of in outputs)
    return Verdict(pair, outputs, changes, near and not any(of.unexplained for of in changes.values()))


def spoken(run: Run, entry: str, part: Part) -> dict[str, np.ndarray]:
    return joined([positions(run(entry, feed), count) for feed, count in zip(part.feeds, part.counts, strict=True)])


def judged(entry: str, name: str, truth: np.ndarray, other: np.ndarray) -> Output:
    """PSNR is 20 log10 of the largest value by the root of the mean square error."""
    truth, other = truth.astype(np.float64), other.astype(np.float64)
    if not truth.size:
        return Output(entry, name, 0.0, np.inf, 1.0, 0)
    if not np.isfinite(other).all():
        return Output(entry, name, np.inf, -np.inf, 0.0, len(truth))
    wrong, most = other - truth, max(float(np.abs(truth).max()), 1e-30)
    spread, size = float(np.sqrt(np.square(wrong).mean())), np.linalg.norm(truth) * np.linalg.norm(other)
    psnr = 20 * np.log10(most / max(spread, 1e-30 * most))
    cosine = float((truth * other).sum() / size) if size else float(not wrong.any())
    return Output(entry, name, float(np.abs(wrong).max()) / most, float(psnr), cosine, len(truth))


def by_description(entries: Mapping[str, Entry]) -> Run:
    return lambda entry, feed: entries[entry].describe(Plain(), feed)


def runner(program: Any, pair: str, seen: Seen) -> Run:
    """Of a loaded package; what is computed exactly is watched for its size."""
    if pair == "exact":
        return lambda entry, feed: seen.run(program, entry, feed)
    return lambda entry, feed: evaluate.run(program, entry, feed, exact=False)


def as_json(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """Infinity is no JSON: what is equal to the bit has no PSNR."""
    return [
        {
            "pair": of.pair,
            "passed": of.passed,
            "outputs": [
                one._asdict() | {name: None for name in ("psnr", "peak") if not np.isfinite(getattr(one, name))}
                for one in of.outputs
            ],
            "decisions": {name: change._asdict() for name, change in of.changes.items()},
        }
        for of in verdicts
    ]


def table(verdicts: Iterable[Verdict]) -> str:
    rows = [f"{'pair':<10} {'worst output':<24} {'peak error':>10} {'PSNR':>9} {'cosine':>12}  decisions turned"]
    for of in verdicts:
        worst = of.worst
        count, turned, odd = map(sum, zip(*of.changes.values(), strict=True)) if of.changes else (0, 0, 0)
        told = f"{turned:,} of {count:,}, {odd:,} but in a tie" if count else "none are made"
        line = f"{of.pair:<10} {worst.entry + ' ' + worst.name:<24} {worst.peak:>10.1e} {worst.psnr:>6.1f} dB"
        rows.append(f"{line} {worst.cosine:>12.8f}  {told}: {'ok' if of.passed else 'FAIL'}")
    return "\n".join(rows)
