"""Speed of early and of lossless decoding beside full depth and mlx-lm: one process, the same weights, in turn.

The run's model as it is, and widened so that it says the same and costs more (scripts/bench/widen.py): its exits are
real at every size. A unit is a held-out prompt, answered by all ways one after another, in another order each time;
what is timed is decoding alone, from a cache that holds all of the prompt but its last token to the last token of the
answer: who says several tokens at once has them counted with the time that they took. An answer of early is its own,
as long as it is.
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
from tqdm import tqdm

from agp.artifacts import write_results
from agp.audit import Audit
from agp.cache import Cache
from agp.follow import follow
from agp.generate import CHUNK, generate, make_sampler, prefill
from agp.macs import macs
from agp.models.decoder import Decoder
from agp.pace import Pace
from agp.replies import Replies
from agp.stats import bootstrap_mean, paired_ratio
from curricula.documents import Prompt, prompts
from curricula.runner import read
from curricula.stages import harvest, rows
from heads.bundle import Bundle
from scripts.bench.widen import headed, widened
from scripts.routes import MOST, RATE, Opened, opened, way

COMMAND = "agp bench decode --routed"
SEED = 0
MOST_TOKENS = 24  # of an answer
RISKS = (0.01, 0.05)
WIDTHS = {"tiny": (1, 100), "100M": (5, 60), "500M": (12, 30)}  # how many times as wide, and prompts


class Timed(NamedTuple):
    seconds: float
    tokens: int
    drafted: float  # share of tokens that left early, or were drafted right


Tokens = Iterator[tuple[int, bool]]  # ids, and whether it left early or was drafted
Way = Callable[[Prompt, int], Tokens]  # the prompt is read by the call, the answer is made as it is asked for


def measure(run: Path, name: str, count: int) -> dict[str, Any]:
    given, (k, _) = opened(run), WIDTHS[name]
    chosen = asked(run, given, count)
    if k > 1:
        wide = widened(given.loaded.model, k)
        given = given._replace(heads=headed(given.heads, wide, k))
    model, stop = given.heads.decoder, set(given.loaded.tokenizer.eos_ids)  # type: ignore[union-attr]
    ways = {"full": full(model, stop), "mlx-lm": theirs(model, stop), "lossless": routed(given, "lossless", 0.0, stop)}
    ways |= {f"early_{risk:g}": routed(given, "early", risk, stop) for risk in RISKS}
    found: dict[str, list[Timed]] = {each: [] for each in ways}
    same = 0
    for n, prompt in enumerate(tqdm([chosen[0], *chosen], desc=name, leave=False)):
        texts = {}
        for each in sorted(ways, key=lambda each: hash_of(n, each)):
            mx.clear_cache()
            told, texts[each] = timed(ways[each], prompt, n)
            if n:  # the first compiles and warms up
                found[each].append(told)
        same += bool(n) and texts["lossless"] == texts["full"]
        gc.collect()
    size = sum(a.size for _, a in flat(model))
    return {"parameters": size, "same": same, "prompts": len(chosen), "found": found, "shares": shares(given.heads)}


def flat(model: Decoder) -> Any:
    return tree_flatten(model.parameters())


def hash_of(n: int, name: str) -> int:
    return int(np.random.default_rng([n, *name.encode()]).integers(1 << 30))


def asked(run: Path, given: Opened, count: int) -> list[Prompt]:
    """Of what the heads were tested on: questions, and beginnings of source that are gone on with by chance."""
    config = harvest.Config(**typed(read(run / "harvest")["config"]))
    of = {source: some for source, some in rows.read(run / "rows", "test").items() if source != rows.GENERAL}
    all_of = prompts(of, given.loaded.tokenizer, **harvest.cuts(config, "test"))  # type: ignore[arg-type]
    order = np.random.default_rng(SEED).permutation(len(all_of))
    return [all_of[i] for i in order[:count]]


def typed(given: dict[str, Any]) -> dict[str, Any]:
    known = harvest.Config.__dataclass_fields__
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if name in known}


def sampler(prompt: Prompt, n: int):
    return make_sampler(1.0 if prompt.drawn else 0.0, seed=n)


def full(model: Decoder, stop: set[int]) -> Way:
    def made(prompt: Prompt, n: int, cache: Cache) -> Tokens:
        how = {"max_tokens": MOST_TOKENS, "sampler": sampler(prompt, n), "stop": stop, "cache": cache}
        for step in generate(model, prompt.ids[-1:], **how):
            yield step.token, False

    def begun(prompt: Prompt, n: int) -> Tokens:
        cache = model.make_cache()
        mx.eval(prefill(model, mx.array([prompt.ids[:-1]]), cache, CHUNK), cache.arrays)
        return made(prompt, n, cache)

    return begun


def routed(given: Opened, mode: str, risk: float, stop: set[int]) -> Way:
    last, pace = given.heads.decoder.config.num_layers - 1, Pace()

    def made(prompt: Prompt, n: int, replies: Replies) -> Tokens:
        audit = Audit(risk, RATE, n) if mode == "early" else None
        going = way(given, mode, replies, sampler(prompt, n), audit=audit, pace=pace, watching=False)
        for token in follow(going, max_tokens=MOST_TOKENS, stop=stop):
            yield token.id, token.block < last

    return lambda prompt, n: made(prompt, n, Replies.begun(given.heads.decoder, [prompt.ids], slack=MOST + 1))


def theirs(model: Decoder, stop: set[int]) -> Way:
    """mlx-lm's own loop over the very same arrays, which begins one pass after the last token."""
    config: Any = model.config
    kinds = list(config.layer_types)
    facts = {name: getattr(config, name) for name in SAME} | {"layer_types": kinds}
    heads = {kind: config.head_dims[kinds.index(kind)] for kind in set(kinds)}
    facts |= {"num_hidden_layers": len(kinds), "intermediate_size": config.widths[0], "use_double_wide_mlp": True}
    facts |= {"head_dim": heads["sliding_attention"], "global_head_dim": heads["full_attention"]}
    facts |= {"num_key_value_heads": config.kv_heads[0], "rope_parameters": dict(config.rope)}
    other = gemma4_text.Model(gemma4_text.ModelArgs.from_dict(facts))
    other.load_weights([(f"model.{path}", a) for path, a in flat(model)], strict=True)
    stream = mx.default_stream(mx.default_device())

    def made(prompt: Prompt, n: int, cache: list[Any]) -> Tokens:
        draw, turn = sampler(prompt, n), iter(range(1 << 30))
        choose = lambda logits: draw(logits, [next(turn)])
        how: Any = {"max_tokens": MOST_TOKENS, "sampler": choose, "prompt_cache": cache}
        for token, _ in generate_step(mx.array(prompt.ids[-1:]), other, stream, **how):
            yield int(token), False
            if int(token) in stop:
                return

    def begun(prompt: Prompt, n: int) -> Tokens:
        cache = other.make_cache()
        other(mx.array([prompt.ids[:-1]]), cache=cache)
        mx.eval([of.state for of in cache])
        return made(prompt, n, cache)

    return begun


SAME = (
    "hidden_size",
    "num_kv_shared_layers",
    "num_attention_heads",
    "hidden_size_per_layer_input",
    "vocab_size",
    "vocab_size_per_layer_input",
    "sliding_window",
    "final_logit_softcapping",
    "max_position_embeddings",
    "rms_norm_eps",
)


def timed(way: Way, prompt: Prompt, n: int) -> tuple[Timed, list[int]]:
    """Without the prefill. What was begun beyond the last token is waited for by nobody, and not timed."""
    tokens = way(prompt, n)
    mx.synchronize()
    began, said, left, ended = time.perf_counter(), [], 0, 0.0
    for id, early in tokens:
        ended = time.perf_counter()
        said.append(id)
        left += early
    mx.synchronize()
    return Timed(ended - began, len(said), left / len(said)), said


def shares(heads: Bundle) -> dict[str, float]:
    """Of a token's multiplications: of hope at all taps, of a look at the first, of all blocks up to it."""
    count = macs(heads.decoder)
    hoping, looking = zip(*(heads.late.macs(n) for n in range(len(heads.taps))), strict=True)
    look, first = heads.modules[0].macs + heads.glance.macs + looking[0], count.upto(heads.taps[0] + 1)
    return {"hope": sum(hoping) / count.whole, "look": look / count.whole, "first": first / count.whole}


def rates(found: list[Timed]) -> list[float]:
    return [of.seconds / of.tokens for of in found]


def together(found: list[Timed]) -> float:
    """Tokens a second, all prompts as one."""
    return sum(of.tokens for of in found) / sum(of.seconds for of in found)


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, list[Timed]] = measured.pop("found")
    ways = {}
    for name, given in found.items():
        pairs, counts = paired_ratio(rates(found["full"]), rates(given), SEED), [of.tokens for of in given]
        early = bootstrap_mean([of.drafted * of.tokens for of in given], SEED, counts)
        ways[name] = {
            "tokens_per_second": round(together(given), 2),
            "ratio": round(pairs.value, 4),
            "interval": [round(edge, 4) for edge in pairs.interval],
            "ratio_together": round(together(given) / together(found["full"]), 4),
            "early": round(early.value, 4),
        }
    return measured | {"ways": ways}


def line(name: str, told: dict[str, Any]) -> str:
    parts = [f"{name:<5} {told['parameters'] / 1e6:6.1f} M, {told['same']} of {told['prompts']} lossless answers alike"]
    for each, of in told["ways"].items():
        low, high = of["interval"]
        ratio = f"{of['ratio']:.3f} [{low:.3f}, {high:.3f}], together {of['ratio_together']:.3f}"
        parts.append(f"{each:<10} {of['tokens_per_second']:7.2f} tokens/s, {ratio}, early {of['early']:.2f}")
    return "\n  ".join(parts)


def run(args) -> None:
    sizes = {}
    for name in args.sizes:
        sizes[name] = summary(measure(args.routed, name, WIDTHS[name][1]))
        print(line(name, sizes[name]), flush=True)
        gc.collect()
        mx.clear_cache()
    if len(sizes) < len(WIDTHS):
        print("not written: results/routed.json holds all sizes")
        return
    print(write(sizes, args.folder))


def write(sizes: dict[str, Any], folder: Path) -> Path:
    def figure(way: str, goal: str) -> dict[str, Any]:
        return {
            "value": {name: of["ways"][way]["ratio"] for name, of in sizes.items()},
            "interval": {name: of["ways"][way]["interval"] for name, of in sizes.items()},
            "goal": goal,
            "command": COMMAND,
            "proxy": True,
        }

    figures = {
        "lossless.speed_ratio": figure("lossless", ">= 1.35"),
        "early.speed_ratio_1pct": figure("early_0.01", ">= 1.15"),
        "early.speed_ratio_5pct": figure("early_0.05", ">= 1.3"),
    }
    return write_results(
        "routed",
        figures,
        folder=folder,
        what="speed over full depth of the same model, median of prompts, bootstrap over prompts; float32; wider sizes "
        "say what the run's model says and cost more",
        config={name: {"times as wide": k, "prompts": count} for name, (k, count) in WIDTHS.items()},
        seeds={"prompts": SEED, "draws": "number of the prompt", "bootstrap": SEED},
        sizes=sizes,
    )
