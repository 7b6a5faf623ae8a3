"""Peak memory of training steps against what agp/peak.py says, for shapes of varied width, depth and length.

agp bench memory
agp bench memory --weights /big/disk/e2b --tokens 128 512      full-size E2B in 4 bits, which takes minutes a step

Each shape, of Gemma 4 or 3n, is a process of its own. The last cases are a full-size random E2B in 4 bits; for lengths
that are not run here the figure is the estimate.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from agp.adapters import linears, shape
from agp.artifacts import RESULTS, ROOT, write_results
from agp.footprint import SHAPES
from agp.models import gemma4
from agp.models.folder import build
from agp.peak import step_bytes
from agp.targets import design
from scripts.bench import e2b
from scripts.bench.decode import SHARED

COMMAND = "agp bench memory"
GB = 1e9
SHAPE = {"hidden": 256, "blocks": 10, "mlp": 1024, "heads": 4, "told": 32, "words": 4096, "rows": 4, "length": 256}
SHAPE |= {"streams": 1}  # more of them make a Gemma 3n
CASES = [
    {},
    {"length": 128},
    {"rows": 1, "length": 1024},
    {"blocks": 20},
    {"mlp": 3072},
    {"hidden": 768},
    {"heads": 8},
    {"words": 262_144, "length": 128},
    {"rows": 2, "hidden": 768, "blocks": 20, "mlp": 512, "heads": 2, "told": 128, "words": 131_072},
    {"rows": 1, "length": 768, "blocks": 20, "mlp": 512, "heads": 2, "words": 32_768},
    {"rows": 1, "length": 512, "hidden": 128, "blocks": 15, "mlp": 512, "told": 128},
    {"hidden": 512, "blocks": 15, "mlp": 2048, "told": 64},
    {"streams": 4},
    {"streams": 2},
    {"streams": 4, "words": 262_144, "length": 128},
    {"streams": 4, "rows": 1, "length": 1024},
    {"streams": 4, "blocks": 20},
    {"streams": 4, "mlp": 3072},
    {"streams": 4, "rows": 2, "hidden": 768},
    {"streams": 4, "rows": 2, "hidden": 512, "blocks": 15, "mlp": 2048, "told": 64},
]
ASKED = (512, 2048)
GOALS = {512: "<= 4", 2048: "<= 10"}


def add_arguments(parser) -> None:
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="of the E2B; made there if there are none")
    parser.add_argument(
        "--tokens", type=int, nargs="*", default=[128], help="lengths of E2B steps to run (default: 128)"
    )
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where memory.json goes (default: results/)")


def run(args) -> None:
    found = [judged(case, apart({"shape": SHAPE | case})) for case in CASES]
    with tempfile.TemporaryDirectory(prefix="agp-e2b-") as name:
        weights = args.weights or Path(name)
        if args.tokens and not (weights / "config.json").exists():
            e2b.write_model(weights, e2b.CONFIG)
        whole = [judged({"e2b": n}, apart({"weights": str(weights), "length": n})) for n in args.tokens]
    print(write(found, whole, args.folder))


def apart(told: dict[str, Any]) -> dict[str, float]:
    """One step in a process of its own."""
    command = [sys.executable, "-m", "scripts.bench.memory_step", json.dumps(told)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"a step of {told} failed: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])


def judged(case: dict[str, Any], step: dict[str, float]) -> dict[str, Any]:
    """Of the whole peak, weights included."""
    config = e2b_config() if "e2b" in case else build(config_of(SHAPE | case)).config
    rows, length = (1, case["e2b"]) if "e2b" in case else ((SHAPE | case)["rows"], (SHAPE | case)["length"])
    said = step["held"] + step_bytes(config, rows, length, int(step["trained"]), "e2b" in case)
    row = {"case": case, **step, "estimate": said, "off": said / step["peak"] - 1}
    print(f"{step['peak'] / GB:7.3f} GB measured, {said / GB:7.3f} estimated, {row['off']:+.1%}  {case}", flush=True)
    return row


def e2b_config() -> gemma4.Config:
    return gemma4.Config.from_dict(e2b.CONFIG)


def config_of(of: dict[str, int]) -> dict[str, Any]:
    blocks, own = of["blocks"], {"model_type": "gemma4_text", "global_head_dim": 128}
    if of["streams"] > 1:
        sparse = [0.95] * (blocks // 3) + [0.0] * (blocks - blocks // 3)
        own = {"model_type": "gemma3n_text", "altup_num_inputs": of["streams"], "activation_sparsity_pattern": sparse}
    sizes = {
        "hidden_size": of["hidden"],
        "num_hidden_layers": blocks,
        "num_kv_shared_layers": blocks // 2,
        "layer_types": [*["sliding_attention"] * 4, "full_attention"] * (blocks // 5),
        "intermediate_size": of["mlp"],
        "num_attention_heads": of["heads"],
        "head_dim": 64,
        "hidden_size_per_layer_input": of["told"],
        "sliding_window": 128,
        "vocab_size": of["words"],
        "vocab_size_per_layer_input": of["words"],
        "tie_word_embeddings": True,
    }
    return SHARED | own | sizes


def write(found: list[dict[str, Any]], whole: list[dict[str, Any]], folder: Path) -> Path:
    """Of E2B, adapter of rank 8 on all linears: the estimate, or what was measured where that is more."""
    measured = {row["case"]["e2b"]: row["peak"] for row in whole}
    peaks = {n: max(estimated(n), measured.get(n, 0.0)) / GB for n in ASKED}
    figures = {
        "train.peak_estimate_error": {
            "value": max(abs(row["off"]) for row in found + whole), "goal": "<= 0.1", "command": COMMAND
        },
        **{f"train.e2b_step_peak_gb.{n}": {"value": peaks[n], "goal": GOALS[n], "command": COMMAND} for n in ASKED},
    }  # fmt: skip
    return write_results(
        "memory",
        figures,
        folder=folder,
        what="peak of a step with weights, adapter (rank 8, all linears) and AdamW; E2B: 4 bits, table on disk",
        shape=SHAPE,
        steps=found,
        e2b=whole,
    )


def estimated(length: int) -> float:
    """Weights without the table, adapter with its two moments, and the step."""
    model = gemma4.Model(e2b_config())  # MLX is lazy: nothing of it is made
    there = linears(model)
    trained = sum(part.rank * sum(shape(there[path])) for path, part in design(model, "all", rank=8).parts.items())
    weights = next(known for known in SHAPES if known.name == "Gemma 4 E2B").weights("4 bits", table_on_disk=True)
    return weights + 12 * trained + step_bytes(model.config, 1, length, trained, packed=True)
