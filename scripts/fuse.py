"""Make an adapter part of the weights: a checkpoint that runs wherever its base does.

agp fuse --model google/gemma-4-E2B-it --adapter runs/notes/adapter --out fused
agp fuse --model mlx-community/gemma-4-e2b-it-4bit --adapter runs/notes/adapter --out fused --dequantize

The sum is computed in float32 and stored as the base is. Weights of few bits may be too coarse to hold the adapter's
change: then nothing is written, and --dequantize stores the layers in 16 bits. Even those may be too coarse for an
adapter that was hardly trained; it is better kept apart. What rounding took is printed.
"""

import sys

import numpy as np

import agp
from agp import adapter_files
from agp.adapters import adapted, attach
from agp.artifacts import unwritable
from agp.fuse import fuse, write
from scripts.asked import some_path


def add_arguments(parser) -> None:
    parser.add_argument("--model", required=True, metavar="PATH", help="the base: a checkpoint folder or a Hub id")
    parser.add_argument("--adapter", required=True, metavar="DIR", help="what `agp train` made, PEFT or mlx-lm")
    parser.add_argument("--out", required=True, type=some_path, metavar="DIR", help="a new folder")
    parser.add_argument("--dequantize", action="store_true", help="store adapted layers in 16 bits")


def run(args) -> None:
    if args.out.exists():
        raise ValueError(f"--out {args.out} exists already; give a new folder")
    if wrong := unwritable(args.out):
        raise ValueError(f"--out {args.out}: {wrong}")
    saved = adapter_files.load(args.adapter)
    loaded = agp.load(args.model)
    attach(loaded.model, saved.adapter, saved.arrays)
    paths = adapted(loaded.model)
    lost = fuse(loaded.model, args.dequantize)
    write(loaded, paths, args.out)
    shares = list(lost.values())
    print(f"rounding took {np.median(shares):.1%} of the change (median; {max(shares):.1%} at most)", file=sys.stderr)
    print(args.out)
