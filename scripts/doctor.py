"""Say what this machine can do, which models fit, and what to do about each shortcoming.

agp doctor
agp doctor --json
"""

import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path

import mlx.core as mx
from huggingface_hub.constants import HF_HUB_CACHE

from agp import __version__, blas
from agp.artifacts import version
from agp.footprint import BITS, GB, SHAPES, Shape
from agp.memory import available, memory

USABLE = 0.85  # of the working set or of free memory: the rest is the system's
FAST = 20.0  # GFLOP/s a CPU with a real BLAS exceeds; the reference one stays near 5
ROOM_ON_DISK = 12 * GB  # a bf16 E2B with towers and tokenizer


def add_arguments(parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(args) -> None:
    found = examine()
    fits = [fit(shape, bits, found["usable_gb"] * GB) for shape in SHAPES for bits in BITS]
    steps = advice(found, fits)
    if args.json:
        print(json.dumps({**found, "fits": fits, "advice": steps}, indent=2))
        return
    print(report(found, fits, steps))


def examine() -> dict:
    """Everything measured or read off this machine; sizes in GB (10^9 bytes)."""
    metal = mx.metal.is_available()
    device = mx.device_info()
    total, free = memory()
    room = available()
    return {
        "agp": __version__,
        "chip": device["device_name"],
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "memory_gb": round(total / GB, 1),
        "free_gb": round(free / GB, 1) if free else None,
        "metal": metal,
        "working_set_gb": round(room / GB, 1) if metal else None,
        "usable_gb": round(room * USABLE / GB, 1),
        "blas": blas.state,
        "matmul_gflops": round(matmul_speed(), 1),
        "core_ml": {"convert": version("coremltools") is not None, "predict": sys.platform == "darwin"},
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("mlx", "mlx-lm", "coremltools", "torch", "transformers", "peft")},
        "hub_cache": HF_HUB_CACHE,
        "hub_free_gb": round(disk_free(Path(HF_HUB_CACHE)) / GB, 1),
    }


def matmul_speed(size: int = 1024, seconds: float = 0.3) -> float:
    """Best GFLOP/s of a float32 product within `seconds`, on the device MLX uses."""
    a, b = mx.random.normal((2, size, size))
    mx.eval(a, b)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        mx.eval(a @ b)
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best


def disk_free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def fit(shape: Shape, bits: str, room: float) -> dict:
    """Where the per-layer table goes, how long a context and how many training rows fit beside the weights."""
    whole, lean = (shape.weights(bits, table_on_disk=on_disk) for on_disk in (False, True))
    context = {on_disk: shape.longest(room - weights) for on_disk, weights in ((False, whole), (True, lean))}
    table = "memory" if context[False] == shape.context else "disk" if context[True] else None
    held = whole if table == "memory" else lean
    rows = shape.rows(room - held) or shape.rows(room - lean)  # a step may need the table's place
    return {
        "model": shape.name,
        "bits": bits,
        "weights_gb": round(whole / GB, 1),
        "table_on_disk_gb": round(lean / GB, 1),
        "table": table,
        "context": context[table == "disk"] if table else 0,
        "lora_rows": rows,
    }


def advice(found: dict, fits: list[dict]) -> list[str]:
    steps = []
    if found["blas"] == "reference":
        steps.append(f"MLX uses its slow reference BLAS. Install OpenBLAS: {blas.INSTALL}")
    if found["blas"] == "late":
        steps.append("mlx.core was imported before agp: import agp first, and OpenBLAS is used")
    if found["blas"] == "openblas" and found["matmul_gflops"] < FAST:
        steps.append("OpenBLAS is loaded and still slow: other work on these cores, or OPENBLAS_NUM_THREADS is low")
    if not found["metal"]:
        steps.append("No Metal: everything runs on the CPU, for tests and small models. There, train in float32.")
    if not any(row["table"] for row in fits):
        steps.append("No model fits: free memory, or use the tiny models in agp/assets")
    elif any(row["table"] == "disk" for row in fits):
        steps.append("Where the table says disk, the per-layer embeddings are read by row: keep the model on an SSD")
    if not found["core_ml"]["convert"]:
        steps.append("No Core ML export: pip install coremltools")
    elif not found["core_ml"]["predict"]:
        steps.append("Core ML programs are converted and checked here; running them on the Neural Engine needs a Mac")
    missing = [name for name in ("torch", "transformers", "peft") if not found["versions"][name]]
    if missing:
        steps.append(f"No {', '.join(missing)}, which judge parity: pip install -e '.[test]' -c constraints.txt")
    if found["hub_free_gb"] * GB < ROOM_ON_DISK:
        steps.append(
            f"{found['hub_cache']} has {found['hub_free_gb']} GB free, E2B needs 12: set HF_HOME to a larger disk"
        )
    return steps


def report(found: dict, fits: list[dict], steps: list[str]) -> str:
    core_ml = found["core_ml"]
    coreml = {(True, True): "converts and predicts", (True, False): "converts; predicting needs macOS"}
    shown = {
        "agp": f"{found['agp']} on Python {found['python']}",
        "chip": f"{found['chip']}, {found['cores']} cores",
        "system": found["system"],
        "memory": f"{found['memory_gb']} GB" + (f", {found['free_gb']} GB free" if found["free_gb"] else ""),
        "Metal": f"working set {found['working_set_gb']} GB" if found["metal"] else "none: MLX runs on the CPU",
        "BLAS": found["blas"],
        "matmul": f"{found['matmul_gflops']:.0f} GFLOP/s at float32 on the {'GPU' if found['metal'] else 'CPU'}",
        "Core ML": coreml.get((core_ml["convert"], core_ml["predict"]), "coremltools is not installed"),
        "libraries": ", ".join(f"{name} {number or '-'}" for name, number in found["versions"].items()),
        "Hub cache": f"{found['hub_cache']}, {found['hub_free_gb']} GB free",
    }
    lines = [f"{name:<10} {text}" for name, text in shown.items()]
    lines += ["", f"What fits in {found['usable_gb']} GB (estimates; the table is the per-layer embedding table)", ""]
    lines.append(
        f"{'model':<13} {'weights':<7} {'all':>8} {'table on disk':>14}  {'table':<7} {'context':>8} {'LoRA rows':>10}"
    )
    lines += [line(row) for row in fits]
    lines += ["", "LoRA rows: rows of 1,024 tokens in a step, checkpointed, rank 8 on all linears."]
    return "\n".join(lines + ["", "What to do", *(f"  - {step}" for step in steps or ["nothing: all is well"])])


def line(row: dict) -> str:
    sizes = f"{row['weights_gb']:>5.1f} GB {row['table_on_disk_gb']:>11.1f} GB"
    fits = f"{row['table'] or 'no room':<7} {row['context']:>8,} {row['lora_rows'] or '-':>10}"
    return f"{row['model']:<13} {row['bits']:<7} {sizes}  {fits}"
