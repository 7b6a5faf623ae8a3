"""Score the shipped models as they lie on disk and write results/tiny.json."""

import json
import time
from pathlib import Path

import sentencepiece
import torch
from transformers import Gemma3nForCausalLM, Gemma4ForCausalLM

from agp.artifacts import digest, write_results
from curricula import families, source
from scripts.tiny import measure, network, shapes

COMMAND = "python -m scripts.make_tiny --score"
SHIPPED = ("tiny-gemma4", "tiny-gemma3n")


def opened(folder: Path):
    """The rounded weights, computed with in float32."""
    kind = Gemma4ForCausalLM if shapes.SHAPES[folder.name].family == "gemma4" else Gemma3nForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    if shapes.SHAPES[folder.name].family == "gemma3n":
        for layer in model.model.layers:
            network.nest(layer)
    return model


def score_model(folder: Path, count: int) -> dict:
    model = opened(folder)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ladder = (
        json.loads((folder / "regimes.json").read_text())
        if (folder / "regimes.json").exists()
        else {"full": {"widths": [], "drop": []}}
    )
    result = {"parameters": sum(p.numel() for p in model.parameters()), "regimes": {}}
    for name, regime in ladder.items():
        network.switch(model, regime)
        result["regimes"][name] = {
            "families": measure.family_table(model, pieces, "test", count),
            "source": measure.source_bits(model, pieces, "heldout"),
        }
        print(folder.name, name, summary(result["regimes"][name]), flush=True)
    network.switch(model, ladder["full"])
    result["shift"] = {
        "families": measure.family_table(model, pieces, "shift", count),
        "source": measure.source_bits(model, pieces, "shift"),
    }
    result["files"] = {p.name: digest(p) for p in sorted(folder.iterdir())}
    result["bytes"] = sum(p.stat().st_size for p in folder.iterdir())
    return result


def above(table: dict, goal: float = 0.9) -> tuple[int, list[int]]:
    """How many families are above the goal, and how many surely and possibly are."""
    rows = table["families"].values()
    surely, possibly = (sum(row["interval"][side] > goal for row in rows) for side in (0, 1))
    return sum(row["exact"] > goal for row in rows), [surely, possibly]


def summary(table: dict) -> str:
    shares = ", ".join(f"{f} {row['exact']:.2f}@{row['first_solved_block']}" for f, row in table["families"].items())
    return f"{above(table)[0]} families above 0.9, {table['source']['bits_per_char']:.3f} bits a character; {shares}"


def figures(models: dict[str, dict]) -> dict[str, dict]:
    """The issue's two figures, each of the worse model, and every model and regime on its own."""
    whole = {name: model["regimes"]["full"] for name, model in models.items()}
    found = {}

    def put(name, value, interval, goal=None):
        found[name] = {"value": value, "interval": interval, "goal": goal, "command": COMMAND}

    solved, worst = min(((above(table)) for table in whole.values()), key=lambda pair: pair[0])
    put("tiny.families_above_90", solved, worst, ">= 8")
    source_table = max((table["source"] for table in whole.values()), key=lambda row: row["bits_per_char"])
    put("tiny.source_bits_per_char", round(source_table["bits_per_char"], 4), source_table["interval"], "<= 1.25")
    put("tiny.megabytes", round(sum(m["bytes"] for m in models.values()) / 1e6, 2), None, "<= 24")
    for model, entry in models.items():
        for regime, table in entry["regimes"].items():
            put(f"{model}.{regime}.families_above_90", *above(table))
            put(
                f"{model}.{regime}.source_bits_per_char",
                round(table["source"]["bits_per_char"], 4),
                table["source"]["interval"],
            )
    return found


def score(assets: Path, threads: int, count: int) -> None:
    torch.set_num_threads(threads)
    started = time.time()
    models = {name: score_model(assets / name, count) for name in SHIPPED if (assets / name / "config.json").exists()}
    if not models:
        raise ValueError(f"score: no model in {assets}; ship one first with `python -m scripts.make_tiny --ship`")
    write_results(
        "tiny",
        figures(models),
        models=models,
        config={name: {k: v for k, v in vars(shapes.SHAPES[name]).items() if k != "notes"} for name in models},
        seeds={name: shapes.SHAPES[name].seed for name in models},
        items_a_family=count,
        splits={split: [share.start, share.stop] for split, share in families.SHARES.items()},
        source_list=source.digest(source.LIST.read_text()),
        lens="final norm and head on a block's output; for Gemma 3n the four streams are brought together first",
        threads=threads,
        seconds=round(time.time() - started),
    )
    print(json.dumps(figures(models), indent=1))
