"""Prefill and decode speed and peak memory of Gemma 4 beside mlx-lm: one process, the same weights, in turn.

agp bench decode
agp bench decode --sizes tiny --runs 3      a look; results are written when all sizes ran
agp bench decode --routed runs/tiny         early and lossless decoding beside full depth and mlx-lm

A pair is one prompt, then short stretches of decoding, by both in alternating order: what else the machine does hits
both alike. mlx-lm runs its own generate_step. Weights are random, in float32.
"""

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models import gemma4_text

from agp.artifacts import RESULTS, write_results
from agp.generate import generate
from agp.models import gemma4
from agp.models.decoder import Decoder
from agp.stats import Estimate, paired_ratio
from scripts.bench import routed

COMMAND = "agp bench decode"
SEED = 0
STRETCH = 8  # tokens decoded by one side before it is the other's turn
TIE = 1e-3  # two logits nearer than this may come out in either order
SHARED = {
    "num_key_value_heads": 1,
    "use_double_wide_mlp": True,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {  # the shape of agp/assets/tiny-gemma4
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_kv_shared_layers": 7,
        "intermediate_size": 192,
        "num_attention_heads": 3,
        "head_dim": 64,
        "global_head_dim": 128,
        "hidden_size_per_layer_input": 64,
        "vocab_size": 2048,
        "sliding_window": 64,
    },
    "100M": {
        "hidden_size": 512,
        "num_hidden_layers": 20,
        "num_kv_shared_layers": 11,
        "intermediate_size": 1280,
        "num_attention_heads": 4,
        "head_dim": 128,
        "global_head_dim": 256,
        "hidden_size_per_layer_input": 64,
        "vocab_size": 16_384,
        "sliding_window": 512,
    },
    "500M": {
        "hidden_size": 1024,
        "num_hidden_layers": 25,
        "num_kv_shared_layers": 14,
        "intermediate_size": 3072,
        "num_attention_heads": 8,
        "head_dim": 128,
        "global_head_dim": 256,
        "hidden_size_per_layer_input": 64,
        "vocab_size": 32_768,
        "sliding_window": 512,
    },
}


class Pair(NamedTuple):
    ours: float
    theirs: float


class Side(NamedTuple):
    name: str
    start: Callable[[list[int], int], Iterator[int]]  # prompt and number of tokens, to tokens


class Size(NamedTuple):
    parameters: int
    prefill: list[Pair]  # seconds
    decode: list[Pair]  # seconds of a stretch
    memory: Pair  # bytes at most
    same: int  # greedy tokens that agree


def add_arguments(parser) -> None:
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="default: all")
    parser.add_argument("--runs", type=int, default=8, help="pairs of prompts a size (default: 8)")
    parser.add_argument("--prompt", type=int, default=768, metavar="N", help="tokens of prompt (default: 768)")
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="tokens decoded a run (default: 32)")
    parser.add_argument(
        "--routed",
        type=Path,
        nargs="?",
        const=Path("runs/tiny"),
        metavar="RUN",
        help="with the heads of a finished run",
    )
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where decode.json goes (default: results/)")


def run(args) -> None:
    if args.routed is not None:
        routed.run(args)
        return
    if args.runs < 2 or args.prompt < 2 or args.tokens < STRETCH:
        raise ValueError(f"at least 2 runs, 2 tokens of prompt and {STRETCH} tokens to decode are needed")
    sizes = {}
    for name in args.sizes:
        sizes[name] = measure(name, args.runs, args.prompt, args.tokens)
        print(line(name, sizes[name], args.prompt), flush=True)
        gc.collect()
        mx.clear_cache()
    if len(sizes) < len(SIZES):
        print("not written: results/decode.json holds all sizes")
        return
    counts = {"runs": args.runs, "prompt": args.prompt, "tokens": args.tokens, "stretch": STRETCH}
    print(write(sizes, counts, args.folder))


def measure(name: str, runs: int, length: int, count: int) -> Size:
    ours, theirs = models(name)
    sides = (
        Side("ours", lambda prompt, n: (step.token for step in generate(ours, prompt, max_tokens=n))),
        Side("theirs", lambda prompt, n: mlx_lm(theirs, prompt, n)),
    )
    parameters: Any = tree_flatten(ours.parameters())
    rng = np.random.default_rng(SEED)
    prompts = rng.integers(ours.config.vocab_size, size=(runs + 1, length)).tolist()
    same = agree(ours, sides, prompts[0], count)  # the first run of each, which also compiles and warms up
    memory = Pair(*(peak(side, prompts[0], count) for side in sides))
    prefill, decode = [], []
    for i, prompt in enumerate(prompts[1:]):
        filled, stretches = race(sides if i % 2 else sides[::-1], prompt, count)
        prefill.append(Pair(**filled))
        decode += [Pair(**stretch) for stretch in stretches]
    return Size(sum(a.size for _, a in parameters), prefill, decode, memory, same)


def mlx_lm(model: gemma4_text.Model, prompt: list[int], count: int) -> Iterator[int]:
    """On the stream that ours runs on, so that waiting for the one is waiting for the other."""
    stream = mx.default_stream(mx.default_device())
    steps: Any = generate_step(mx.array(prompt), model, stream, max_tokens=count)
    return (token for token, _ in steps)


def config_of(name: str) -> dict[str, Any]:
    config = SHARED | SIZES[name]
    kinds = ["full_attention" if i % 5 == 4 else "sliding_attention" for i in range(config["num_hidden_layers"])]
    return config | {"layer_types": kinds, "vocab_size_per_layer_input": config["vocab_size"]}


def models(name: str) -> tuple[gemma4.Model, gemma4_text.Model]:
    """Ours and mlx-lm's, over the very same arrays."""
    config = config_of(name)
    ours = gemma4.Model(gemma4.Config.from_dict(config))
    parameters: Any = tree_flatten(ours.parameters())
    keys = mx.random.split(mx.random.key(SEED), len(parameters))
    weights = [(path, draw(path, a, key)) for (path, a), key in zip(parameters, keys, strict=True)]
    ours.load_weights(weights, strict=True)
    mx.eval(ours.parameters())
    theirs = gemma4_text.Model(gemma4_text.ModelArgs.from_dict(config))
    theirs.load_weights([(f"model.{path}", a) for path, a in weights], strict=True)
    return ours, theirs


def draw(path: str, like: mx.array, key: mx.array) -> mx.array:
    """Matrices that keep a state's size; norms that keep attention so soft that rounding does not decide the token."""
    if path.endswith(("q_norm.weight", "k_norm.weight")):
        return mx.full(like.shape, like.size**-0.25)
    return like if like.ndim == 1 else mx.random.normal(like.shape, key=key) * like.shape[-1] ** -0.5


def race(sides: tuple[Side, ...], prompt: list[int], count: int) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Seconds until the first token, and seconds of each stretch after it, by side."""
    filled, running = {}, {}
    for side in sides:
        mx.clear_cache()
        start = time.perf_counter()
        running[side.name] = side.start(prompt, count + STRETCH)
        next(running[side.name])
        filled[side.name] = time.perf_counter() - start
        mx.synchronize()
    stretches = []
    for i in range(count // STRETCH):
        stretches.append({side.name: stretch(running[side.name]) for side in sides[:: 1 if i % 2 else -1]})
    for tokens in running.values():
        tokens.close()
    return filled, stretches


def stretch(tokens: Iterator[int]) -> float:
    """Both sides compute one token ahead: it is done when a stretch begins, and waited for when it ends."""
    start = time.perf_counter()
    for _ in range(STRETCH):
        next(tokens)
    mx.synchronize()
    return time.perf_counter() - start


def peak(side: Side, prompt: list[int], count: int) -> int:
    """Bytes at most, weights included."""
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    for _ in side.start(prompt, count):
        pass
    mx.synchronize()
    return mx.get_peak_memory()


def agree(model: Decoder, sides: tuple[Side, ...], prompt: list[int], count: int) -> int:
    """How many greedy tokens are the same; they may part only where two logits tie."""
    ours, theirs = (list(side.start(prompt, count)) for side in sides)
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), count)
    if same < count:
        logits = model([prompt + ours[:same]], last=1).logits[0, -1]
        gap = (logits[ours[same]] - logits[theirs[same]]).item()
        if abs(gap) > TIE:
            raise ValueError(
                f"mlx-lm's token {same} is {theirs[same]}, ours {ours[same]}, whose logit is {gap:.2g} above"
            )
    return same


def ratio(pairs: list[Pair]) -> Estimate:
    """Speed, ours over theirs, from seconds."""
    return paired_ratio([p.theirs for p in pairs], [p.ours for p in pairs], SEED)


def speeds(pairs: list[Pair], tokens: int) -> dict[str, float]:
    return {side: round(tokens / float(np.median([getattr(p, side) for p in pairs])), 1) for side in Pair._fields}


def line(name: str, size: Size, prompt: int) -> str:
    parts = [f"{name:<5} {size.parameters / 1e6:6.1f} M, {size.same} tokens alike"]
    for what, pairs, tokens in (("prefill", size.prefill, prompt), ("decode", size.decode, STRETCH)):
        value, (low, high) = ratio(pairs)
        speed = speeds(pairs, tokens)
        parts.append(f"{what} {speed['ours']} | {speed['theirs']} tokens/s, {value:.3f} [{low:.3f}, {high:.3f}]")
    ours, theirs = size.memory
    return "; ".join([*parts, f"memory {ours / 1e6:.0f} | {theirs / 1e6:.0f} MB, {ours / theirs:.3f}"])


def write(sizes: dict[str, Size], counts: dict[str, int], folder: Path) -> Path:
    figures = {}
    for what in ("prefill", "decode"):
        found = {name: ratio(getattr(size, what)) for name, size in sizes.items()}
        figures[f"decode.{what}_ratio"] = {
            "value": {name: round(e.value, 4) for name, e in found.items()},
            "interval": {name: [round(edge, 4) for edge in e.interval] for name, e in found.items()},
            "goal": ">= 1.0",
            "command": COMMAND,
        }
    figures["decode.memory_ratio"] = {
        "value": {name: round(size.memory.ours / size.memory.theirs, 4) for name, size in sizes.items()},
        "goal": "<= 1.0",
        "command": COMMAND,
    }
    return write_results(
        "decode",
        figures,
        folder=folder,
        what="Gemma 4, random weights, float32; ours over mlx-lm's speed, median of pairs, bootstrap over pairs",
        config={name: config_of(name) for name in sizes},
        seeds={"weights": SEED, "prompts": SEED, "bootstrap": SEED},
        counts=counts,
        sizes={name: facts(size, counts["prompt"]) for name, size in sizes.items()},
    )


def facts(size: Size, prompt: int) -> dict[str, Any]:
    return {
        "parameters": size.parameters,
        "same_greedy_tokens": size.same,
        "prefill_tokens_per_second": speeds(size.prefill, prompt),
        "decode_tokens_per_second": speeds(size.decode, STRETCH),
        "peak_bytes": size.memory._asdict(),
        "prefill_seconds": [[round(s, 5) for s in pair] for pair in size.prefill],
        "decode_seconds": [[round(s, 5) for s in pair] for pair in size.decode],
    }
