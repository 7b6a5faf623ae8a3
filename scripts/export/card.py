"""The card beside a package: what it is, what it was made of, how near it is to what it should say."""

from typing import Any

from export import folder, verify
from export.cost import told


def card(manifest: dict[str, Any], proof: verify.Proof) -> str:
    rules = manifest["decisions"]
    entries = [f"| {name} | {shapes(of)} |" for name, of in manifest["inputs"].items()]
    codecs = ", ".join(f"{name} ({len(codec['levels'])} numbers)" for name, codec in rules["codecs"].items()) or "none"
    why = manifest["past_gates"]
    gates = "all passed" if why is None else f"not all passed; exported because: {why}"
    return "\n".join(
        [
            "# Heads",
            "",
            f"The frozen heads of a run of `{manifest['recipe']}` on `{manifest['model']}`, as a Core ML package of",
            "half precision and a Core AI asset of single precision. They read states of that model with that run's",
            "domain adapter, and of no other.",
            "",
            f"- Taps: after blocks {', '.join(map(str, rules['taps']))}. Room for {manifest['room']:,} keys a kind.",
            f"- Concepts: {len(rules['concepts']):,}, by thresholds in manifest.json. Codecs: {codecs}.",
            f"- Gates of the run: {gates}.",
            f"- Content: {manifest['content']}",
            *(f"- {folder.smaller(kind)}: {told(cost)}." for kind, cost in manifest["smaller"].items()),
            "",
            "| entry | inputs (channels x positions) |",
            "| --- | --- |",
            *entries,
            "",
            "What inputs and outputs mean, thresholds and names stand in manifest.json. On held-out positions:",
            "",
            *(f"    {line}" for line in verify.table(proof.verdicts).splitlines()),
            "",
            f"{'Proven' if proof.passed else 'NOT PROVEN'}: {verify.whole(proof)}.",
            "",
            "Computed by numpy from the package's bytes, exactly and with every result rounded to half precision, and",
            "by Apple's runtime from the asset's; no Neural Engine was asked for this.",
            "",
        ]
    )


def shapes(of: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {channels} x {count}" for name, (channels, count) in of.items())
