"""Whether a saved package says what it was described to say: one line a pair, all outputs behind it.

An output is judged by its error and PSNR; where it hangs on decisions, at positions where these were the same, and
decisions are judged by themselves. A pair passes if every output is near enough and no decision turned but in a tie.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from export import decisions
from export.decisions import Change
from export.folder import Check
from export.sample import Part, joined, positions

GOALS = {"mlx": 90.0, "twins": 90.0, "exact": 60.0, "half": 60.0}  # decibels, the least of any output
DEVICE = ("CPU_ONLY", "CPU_AND_NE", "CPU_AND_GPU", "ALL")
GOALS |= dict.fromkeys(DEVICE, 50.0)  # its exponentials and bends are read off tables
CLOSE = {"coreai": 1e-6}  # the largest error of any output, where all numbers are of single precision
DECIDED = ("size",)  # outputs that are decisions and nothing else

Run = Callable[[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]  # (entry, feeds) -> outputs, as columns


class Output(NamedTuple):
    entry: str
    name: str
    error: float  # the size of all errors by that of all values
    peak: float  # largest error by the largest value
    psnr: float  # decibels
    cosine: float
    positions: int  # that were judged


class Verdict(NamedTuple):
    pair: str
    outputs: list[Output]
    anywhere: list[Output]  # those that hang on decisions, where these turned too: told, not judged
    changes: dict[str, Change]
    passed: bool

    @property
    def worst(self) -> Output:
        return max(self.outputs, key=lambda of: of.error if self.pair in CLOSE else -of.psnr)


class Proof(NamedTuple):
    checks: list[Check]
    verdicts: list[Verdict]

    @property
    def passed(self) -> bool:
        return all(of.passed for of in (*self.checks, *self.verdicts))


def compare(pair: str, run: Run, parts: Mapping[str, Part], rules: Mapping[str, Any]) -> Verdict:
    """Against what was described."""
    outputs, anywhere, changes = measured(run, parts, rules)
    near = all(of.error <= CLOSE[pair] if pair in CLOSE else of.psnr >= GOALS[pair] for of in outputs)
    return Verdict(pair, outputs, anywhere, changes, near and not any(of.unexplained for of in changes.values()))


def measured(
    run: Run, parts: Mapping[str, Part], rules: Mapping[str, Any]
) -> tuple[list[Output], list[Output], dict[str, Change]]:
    outputs: list[Output] = []
    anywhere: list[Output] = []
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
                anywhere += [judged(entry, name, truth, other[name])] if name in same else []
    return outputs, anywhere, changes


def spoken(run: Run, entry: str, part: Part) -> dict[str, np.ndarray]:
    return joined([positions(run(entry, feed), count) for feed, count in zip(part.feeds, part.counts, strict=True)])


def judged(entry: str, name: str, truth: np.ndarray, other: np.ndarray) -> Output:
    """PSNR is 20 log10 of the largest value by the root of the mean square error."""
    truth, other = truth.astype(np.float64), other.astype(np.float64)
    if not truth.size:
        return Output(entry, name, 0.0, 0.0, np.inf, 1.0, 0)
    if not np.isfinite(other).all():
        return Output(entry, name, np.inf, np.inf, -np.inf, 0.0, len(truth))
    wrong, most = other - truth, max(float(np.abs(truth).max()), 1e-30)
    spread, size = float(np.sqrt(np.square(wrong).mean())), np.linalg.norm(truth) * np.linalg.norm(other)
    error = float(np.linalg.norm(wrong) / max(np.linalg.norm(truth), 1e-30))
    psnr = 20 * np.log10(most / max(spread, 1e-30 * most))
    cosine = float((truth * other).sum() / size) if size else float(not wrong.any())
    return Output(entry, name, error, float(np.abs(wrong).max()) / most, float(psnr), cosine, len(truth))


def as_json(proof: Proof) -> dict[str, Any]:
    """Infinity is no JSON: what is equal to the bit has no PSNR."""
    pairs = [
        {
            "pair": of.pair,
            "passed": of.passed,
            "outputs": [finite(one) for one in of.outputs],
            "anywhere": [finite(one) for one in of.anywhere],
            "decisions": {name: change._asdict() for name, change in of.changes.items()},
        }
        for of in proof.verdicts
    ]
    return {"checks": [of._asdict() for of in proof.checks], "pairs": pairs}


def finite(of: Output) -> dict[str, Any]:
    return of._asdict() | {name: None for name in ("error", "psnr", "peak") if not np.isfinite(getattr(of, name))}


def told(proof: Proof) -> str:
    checks = [f"{of.name:<10} {of.told}: {'ok' if of.passed else 'FAIL'}" for of in proof.checks]
    return "\n".join([*checks, *([table(proof.verdicts)] if proof.verdicts else []), whole(proof)])


def whole(proof: Proof) -> str:
    """In one line, the last."""
    count, failed = len(proof.checks) + len(proof.verdicts), [of.name for of in proof.checks if not of.passed]
    failed += [of.pair for of in proof.verdicts if not of.passed]
    left = "" if proof.verdicts else "; nothing more was asked of it"
    return f"{len(failed)} of {count} failed: {', '.join(failed)}{left}" if failed else f"all {count} passed"


def table(verdicts: Sequence[Verdict]) -> str:
    names = f"{'pair':<8} {'worst output':<22} {'error':>8} {'peak':>8} {'PSNR':>9} {'cosine':>11}"
    rows = [f"{names}  decisions turned"]
    for of in verdicts:
        worst = of.worst
        line = f"{of.pair:<8} {worst.entry + ' ' + worst.name:<22} {worst.error:>8.1e} {worst.peak:>8.1e}"
        line += f" {worst.psnr:>6.1f} dB {worst.cosine:>11.8f}"
        rows.append(f"{line}  {turned(of.changes)}: {'ok' if of.passed else 'FAIL'}")
    for of in verdicts:
        if low := [one for one in of.anywhere if one.psnr < GOALS.get(of.pair, 0)]:
            worst = min(low, key=lambda one: one.psnr)
            told = f"with positions where a pick turned, {worst.entry} {worst.name} has {worst.psnr:.1f} dB"
            rows.append(f"{of.pair:<8} (not judged: {told})")
    return "\n".join(rows)


def turned(changes: Mapping[str, Change]) -> str:
    """With the kind that fares worst."""
    if not changes:
        return "none are made"
    count, other, odd = map(sum, zip(*changes.values(), strict=True))
    kind = max(changes, key=lambda name: (changes[name].unexplained, changes[name].changed))
    most = f" (most: {changes[kind].changed:,} of {kind})" if other else ""
    return f"{other:,} of {count:,}{most}, {odd:,} but in a tie"
