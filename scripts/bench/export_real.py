"""Heads of a real model's size, of random weights: exported and proven end to end in a process of its own.

What it says means nothing; that it is what was described, at which cost in time and memory, does.
"""

import math
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from agp.models.folder import build
from agp.models.known import KNOWN
from agp.peak import streams_of
from curricula import recipes
from curricula.stages.depth import midway
from export import asset, blob, coreai, coreml, decisions, depth, judges, program, sample
from export.program import MANY, columns
from export.ranges import Seen
from export.verify import Verdict, turned
from heads import glimpse, semantic, trajectory, transfer
from heads.bundle import DECISIONS, Bundle
from heads.codec import Integers, Raw
from heads.depth import Config as DepthConfig
from heads.depth import Head as Depth
from scripts.export.feeds import padded
from scripts.steps import Steps

RECIPES = {"gemma4_e2b": "D 1536", "gemma3n_e2b": "D 2048, four streams"}
DICTIONARY, CONCEPTS, ROOM = 16_384, 64, 512
PICKED = 3.3  # of standard deviations: some 8 free latents at a pick
BULK, PEAKS, SMALL = 3.0, 130.0, 0.02  # of published states, and of weights
ONES = 16  # single positions
SEED = 0


def random_bundle(recipe: str) -> Bundle:
    """Sizes as the recipe has them, with a dictionary of 16,384."""
    given = getattr(recipes, recipe)()
    mx.random.seed(SEED)
    decoder = build(KNOWN[given.domain.model])
    config, taps = decoder.config, given.harvest.taps
    dim, width = config.hidden_size, config.hidden_size * streams_of(config)
    shape = trajectory.Config(
        taps=len(taps), width=width, dim=dim, facts=len(glimpse.FACTS), window=4, hidden=given.trajectory.hidden
    )
    heads = [trajectory.Head(shape) for _ in range(2)]
    for head in heads:
        head.last, head.first = (SMALL * mx.random.normal(of.shape) for of in (head.last, head.first))
        head.now, head.before, head.bias, head.middle = (heads[0][n] for n in ("now", "before", "bias", "middle"))
    look = glimpse.Config(
        count=given.trajectory.glance,
        others=config.vocab_size - given.trajectory.glance,
        dim=dim,
        cap=config.final_logit_softcapping,
        clear=1.0,
    )
    glance = glimpse.Head(look)
    glance.rows, glance.rest = SMALL * mx.random.normal((look.count, dim)), 0.1 * SMALL * mx.random.normal((dim,))
    settings = [DepthConfig(taps=n + 1, blocks=midway(decoder), width=given.depth.width) for n in range(len(taps))]
    modules = tuple(Depth(of, decoder) for of in settings)
    for module in modules:
        module.down.weight = SMALL * mx.random.normal(module.down.weight.shape)
    return Bundle(
        decoder=decoder,
        taps=taps,
        exits=tuple(range(len(taps))),
        gate=(-math.inf, *[0.0] * (len(taps) - 1)),
        budget=1,
        limits={name: {"0.01": 0.5} for name in DECISIONS},
        plain=heads[0],
        late=heads[1],
        window=4,
        glance=glance,
        modules=modules,
        names=dictionary(width),
        named=taps[1],
        codecs={"raw": Raw(width), "int8": Integers(width, 8, width), **codecs(width, dim)},
        sent=taps[1],
    )


def dictionary(width: int) -> semantic.Head:
    config = semantic.Config(
        state=width, concepts=tuple(f"c{n}" for n in range(CONCEPTS)), types=(32, 16, 16), width=DICTIONARY - CONCEPTS
    )
    head = semantic.Head(config)
    head.naming.weight = width**-0.5 * mx.random.normal(head.naming.weight.shape)
    head.limits, head.levels = mx.full((CONCEPTS,), 2.0), mx.full(head.levels.shape, PICKED)
    return head


def codecs(width: int, told: int) -> dict[str, transfer.Head]:
    """As many combinations as bytes, of 16 levels each: half of the bytes that are there."""
    found = {}
    for ratio in (4, 16):
        head = transfer.Head(transfer.Config(width=width, told=told, levels=(16,) * (2 * width // ratio)))
        head.expected.weight = SMALL * mx.random.normal(head.expected.weight.shape)
        head.span = mx.array([-1.0, 3.0])
        found[f"{ratio}x"] = head
    return found


def states(rng: np.random.Generator, width: int, count: int) -> np.ndarray:
    """Of the size that was published: most numbers near 3, one in a thousand up to 130."""
    found = BULK * rng.normal(size=(count, width))
    found[:, :: max(1, width // 8)] *= PEAKS / BULK / 3
    return found


def feed(heads: Bundle, rng: np.random.Generator, count: int, shapes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    width, size = heads.plain.config.width, shapes["states"][1]
    whole = np.concatenate([states(rng, width, count) for _ in heads.taps], axis=1)
    found = {"states": padded(columns(whole), size), "before": columns(states(rng, width, heads.window - 1))}
    found["told"] = padded(columns(rng.normal(size=(count, shapes["told"][0]))), size)
    for name, (channels, positions) in shapes.items():
        if name.startswith(("keys", "values")):
            found[name] = rng.normal(size=(1, channels, 1, positions)) / math.sqrt(channels)
        elif name.startswith("mask"):
            found[name] = np.where(rng.uniform(size=(1, channels, 1, positions)) < 0.5, 0.0, depth.HIDDEN)
        elif name.startswith(("cos", "sin")):
            turn = np.arange(positions) * np.exp(-np.linspace(0, 9, channels))[:, None]
            found[name] = (np.cos if name.startswith("cos") else np.sin)(turn)[None, :, None]
    return found


def told(of: Verdict) -> dict[str, Any]:
    """Of every output how near it is."""
    near = {f"{one.entry} {one.name}": round(one.psnr, 1) for one in sorted(of.outputs, key=lambda one: one.psnr)}
    return {"passed": of.passed, "error": of.worst.error, "psnr": near, "decisions": turned(of.changes)}


def proven(recipe: str) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    steps, out = Steps(7), Path(tempfile.mkdtemp(prefix="agp-real-"))
    rng = np.random.default_rng(SEED)

    def timed(name, ask):
        with steps(name):
            began = time.perf_counter()
            found = ask()
            seconds[name] = time.perf_counter() - began
        return found

    def described():
        shapes = {name: dict(entries[name].inputs) for name in ("many", "one")}
        found = {
            name: sample.described(
                entries[name], [feed(heads, rng, count, shapes[name]) for _ in range(times)], [count] * times
            )
            for name, count, times in (("many", MANY, 1), ("one", 1, ONES))
        }
        given, told = states(rng, heads.plain.config.width, MANY), rng.normal(size=(MANY, shapes["one"]["told"][0]))
        given, told = (mx.array(of.astype(np.float32)) for of in (given, told))
        found["receive_many"] = sample.described(
            entries["receive_many"], [program.receiving(heads, given, told)], [MANY]
        )
        return found

    heads = timed("heads", lambda: random_bundle(recipe))
    entries, rules = program.entries(heads, ROOM), decisions.rules(heads)
    parts = timed("description", described)
    timed("package", lambda: coreml.save(out / "heads.mlpackage", entries, "one"))
    timed("asset", lambda: coreai.save(out / "heads.aimodel", entries))
    seen, read = Seen(), timed("reading", lambda: judges.evaluate.load(out / "heads.mlpackage"))
    verdicts = timed("proof", lambda: list(judges.saved(out, read, parts, rules, seen, asset=True)))
    inputs = {name: {of: list(size) for of, size in entry.inputs.items()} for name, entry in entries.items()}
    checks = timed("checks", lambda: judges.checks(read, parts, inputs, seen))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "recipe": recipe,
        "seconds": seconds,
        "peak_bytes": peak,
        "package_bytes": sum(of.bytes for of in blob.blobs(out / "heads.mlpackage")),
        "asset_bytes": (out / "heads.aimodel" / asset.PROGRAM).stat().st_size,
        "pairs": {of.pair: told(of) for of in verdicts},
        "checks": {of.name: of.told if of.passed else f"FAIL {of.told}" for of in checks},
    }
