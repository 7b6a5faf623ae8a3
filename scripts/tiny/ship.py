"""Round a finished state to bfloat16 and write it as a Hugging Face folder."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma3nForCausalLM, Gemma4ForCausalLM

from agp.artifacts import write_json
from scripts.tiny import shapes
from scripts.tiny.fit import STATE, load_step

RESULTS = Path("results")
TOKENIZER = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def ship(name: str, state: Path, folder: Path) -> None:
    """Write the weights of `state` to `folder`, whole files by rename, with the tokenizer and the ladder of regimes."""
    from safetensors import safe_open

    if not (state / STATE).exists():
        raise ValueError(
            f"ship: no finished state in {state}; run `python -m scripts.make_tiny --shape {name} --finish 600` first"
        )
    kind: Any = Gemma4ForCausalLM if shapes.SHAPES[name].family == "gemma4" else Gemma3nForCausalLM
    model = kind(shapes.configuration(name))
    with safe_open(state / STATE, "pt") as stored:
        weights = {k.removeprefix("model."): stored.get_tensor(k) for k in stored.keys() if k.startswith("model.")}  # noqa: SIM118
    lost, extra = model.load_state_dict(weights, strict=False)
    if extra or any(k != "lm_head.weight" for k in lost):
        raise ValueError(f"ship: {state} does not fit {name}: missing {lost}, unknown {extra}")
    model.tie_weights()
    model = model.to(torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".ship-") as made:
        model.generation_config.eos_token_id = [1, 5]  # the end of text and the end of a turn
        model.save_pretrained(made)
        plain_config(Path(made) / "config.json", name)
        for file in sorted(Path(made).iterdir()):
            file.chmod(0o644)
            file.replace(folder / file.name)
    for file in TOKENIZER:
        if not (folder / file).exists():
            shutil.copyfile(folder.parent / "tiny-gemma4" / file, folder / file)
    if shapes.SHAPES[name].family == "gemma3n":
        write_json(folder / "regimes.json", shapes.ladder(name))
    thin_log(name, state)
    print(f"shipped {name} after step {load_step(state)} to {folder}")


def thin_log(name: str, state: Path, rows: int = 200) -> None:
    """Keep a share of the training log, plateau and branch, beside the results."""
    logs = (state.with_name(state.name.removesuffix("-finish")) / "log.jsonl", state / "log.jsonl")
    lines = [line for log in dict.fromkeys(logs) if log.exists() for line in log.read_text().splitlines()]
    kept = lines[:: max(1, len(lines) // rows)]
    (RESULTS / f"{name}.jsonl").write_text("\n".join(kept) + "\n")


def plain_config(path: Path, name: str) -> None:
    """The config in the form every reader knows: one head size for full attention, not a table by layer."""
    data = json.loads(path.read_text())
    if shapes.SHAPES[name].family == "gemma4":
        data.pop("per_layer_config", None)
        data["global_head_dim"] = shapes.SHAPES[name].head_full
    data["eos_token_id"] = [1, 5]
    write_json(path, data)
