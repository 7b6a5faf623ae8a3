"""Make the tiny models: `python -m scripts.make_tiny --shape NAME` trains; `--finish N`, `--ship`, `--score` follow."""

import argparse
import ctypes
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch starts slowly, and only after its threads are set
    from scripts.tiny.fit import Plan

ASSETS = Path("agp/assets")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make_tiny", description=__doc__)
    parser.add_argument("--shape", default="tiny-gemma4", help="a name from scripts/tiny/shapes.py")
    parser.add_argument("--state", type=Path, help="where the training state lies, outside the checkout")
    parser.add_argument("--steps", type=int, default=30_000, help="where training stops, counted from the first step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", type=float, default=1.0, help="relative learning rate of the plateau")
    parser.add_argument("--adamw", action="store_true", help="AdamW everywhere instead of Muon for matrices")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--finish", type=int, metavar="N", help="from the saved state, decay over N steps on a branch")
    parser.add_argument("--ship", action="store_true", help="round the finished branch to bfloat16 into agp/assets")
    parser.add_argument("--score", action="store_true", help="score what is shipped and write results/tiny.json")
    parser.add_argument("--items", type=int, default=200, help="test items a family in scoring")
    parser.add_argument(
        "--list-source", action="store_true", help="rewrite the list of source modules and the held-out text"
    )
    parser.add_argument(
        "--tokenizer", action="store_true", help="train the tokenizer anew (all models must then be retrained)"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    state = args.state or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "agp/make_tiny" / args.shape
    if args.list_source or args.tokenizer:
        prepare(args.list_source, args.tokenizer)
    elif args.score:
        from scripts.tiny.score import score

        score(ASSETS, args.threads, args.items)
    elif args.ship:
        from scripts.tiny.ship import ship

        ship(args.shape, state.with_name(state.name + "-finish"), ASSETS / args.shape)
    else:
        train(args, state)


def prepare(list_source: bool, tokenizer: bool) -> None:
    from scripts.tiny import listing, vocabulary
    from scripts.tiny.shapes import SHAPES

    if list_source:
        listing.write_listing()
    if tokenizer:
        for name in SHAPES:
            if (ASSETS / name).exists() or name in ("tiny-gemma4", "tiny-gemma3n"):
                vocabulary.train(ASSETS / name)


def keep_memory() -> None:
    """Ask glibc not to hand freed activations back to the kernel: getting them again costs a page fault a page."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its largest
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def train(args: argparse.Namespace, state: Path) -> None:
    keep_memory()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(state.parent / "compiled"))
    import torch

    from scripts.tiny.fit import Plan, Trainer

    torch.set_num_threads(args.threads)
    plan = Plan(args.shape, state, ASSETS / "tiny-gemma4" / "tokenizer.model", args.steps,
                muon=not args.adamw, compile=not args.no_compile, peak=args.peak)  # fmt: skip
    if args.finish:
        plan = branched(plan, args.finish)
    plan.state.mkdir(parents=True, exist_ok=True)
    Trainer(plan).run()


def branched(plan: "Plan", steps: int) -> "Plan":
    """A copy of the plateau that decays over `steps`; the same branch, interrupted, goes on where it was."""
    from scripts.tiny.fit import STATE, load_step

    branch = plan.state.with_name(plan.state.name + "-finish")
    first = load_step(plan.state)
    begun, ask = branch / "decay.json", {"from": first, "steps": steps}
    if not begun.exists() or json.loads(begun.read_text()) != ask:
        shutil.rmtree(branch, ignore_errors=True)
        branch.mkdir(parents=True)
        shutil.copyfile(plan.state / STATE, branch / STATE)
        begun.write_text(json.dumps(ask))
    return replace(plan, state=branch, steps=first + steps, decay_from=first)


if __name__ == "__main__":
    main()
