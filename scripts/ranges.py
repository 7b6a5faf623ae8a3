"""The largest |state| after each block of a model: what half precision, and the Neural Engine, would have to hold.

agp ranges tiny-gemma4 --dtype float32
agp ranges google/gemma-4-E2B-it                            on a Mac
agp ranges google/gemma-3n-E2B-it --adapter runs/notes/adapter --texts notes.txt more.txt

Without --texts, the held-out source texts that come with AGP are read. An export holds this table of its own model.
"""

import json
from pathlib import Path

from tqdm import tqdm

import agp
from agp import adapter_files
from agp.adapters import attach
from agp.models.load import DTYPES
from curricula import source
from export.survey import largest
from scripts.asked import some_path

TOKENS = 512
HALF, SAFE = 65_504.0, 16_384.0
LARGEST = 1 << 26  # bytes of a text


def add_arguments(parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint folder, a Hub id, or a tiny model's name")
    parser.add_argument("--adapter", metavar="DIR", help="what `agp train` made, or PEFT, or mlx-lm")
    parser.add_argument("--texts", nargs="+", type=some_path, metavar="FILE", help="texts to read (default: AGP's)")
    parser.add_argument(
        "--tokens", type=int, default=TOKENS, metavar="N", help=f"of each text, at most (default: {TOKENS})"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: as stored; float32 is the fastest on a CPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args) -> None:
    if args.tokens < 1:
        raise ValueError(f"--tokens is {args.tokens}; 1 or more is needed")
    texts = read(args.texts)
    adapter = None if args.adapter is None else adapter_files.load(args.adapter)
    loaded = agp.load(args.model, dtype=args.dtype)
    if loaded.tokenizer is None:
        raise ValueError(f"{args.model} has no tokenizer, and text cannot be read without one")
    if adapter:
        attach(loaded.model, adapter.adapter, adapter.arrays)
    tokens = [loaded.tokenizer.encode(text)[: args.tokens] for text in texts]
    sizes = largest(loaded.model, tqdm([of for of in tokens if of], unit="text", leave=False))
    if args.json:
        print(json.dumps({"texts": len(tokens), "positions": sum(map(len, tokens)), "blocks": sizes}))
        return
    print(f"{len(tokens)} texts, {sum(map(len, tokens)):,} positions; half precision holds {HALF:,.0f}")
    for block, size in enumerate(sizes):
        odd = "  beyond half precision" if size > HALF else "  sums of it may not fit" if size > SAFE else ""
        print(f"block {block:>3} {size:>12,.1f}{odd}")


def read(files: list[Path] | None) -> list[str]:
    if files is None:
        return list(source.committed("heldout").values())
    found = []
    for path in files:
        if not path.is_file():
            raise ValueError(f"--texts {path} is {'a folder; a file is needed' if path.exists() else 'not there'}")
        if path.stat().st_size > LARGEST:
            raise ValueError(f"--texts {path} has {path.stat().st_size:,} bytes; {LARGEST:,} at most")
        try:
            found.append(path.read_text())
            if not found[-1].strip():
                raise ValueError(f"--texts {path} has no text in it")
        except UnicodeDecodeError as e:
            raise ValueError(f"--texts {path} is no text: byte {e.start:,} is not UTF-8") from e
    return found
