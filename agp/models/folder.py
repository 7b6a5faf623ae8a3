"""Where a checkpoint lies, here or on the Hub, and what its config.json says. Nothing in it is ever run."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from agp.models import gemma3n, gemma4
from agp.models.decoder import Decoder
from agp.models.files import read_json
from agp.models.known import KNOWN
from agp.models.layout import positive
from agp.models.tensors import clean, shown

WANTED = ["model*.safetensors", "*.json", "tokenizer.model", "*.jinja"]  # no code, no pickles, no images
ASSETS = Path(__file__).parents[1] / "assets"
SHIPPED = ("tiny-gemma4", "tiny-gemma3n")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
FAMILIES = {
    "gemma4": gemma4,
    "gemma4_text": gemma4,
    "gemma4_unified": gemma4,
    "gemma4_unified_text": gemma4,
    "gemma3n": gemma3n,
    "gemma3n_text": gemma3n,
}
NO_TABLE = {"hidden_size_per_layer_input": 0}  # what gemma4_unified means by not saying
WHOLE = {  # and how large at most
    **dict.fromkeys(["hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"], 2**20),
    **dict.fromkeys(["intermediate_size", "hidden_size_per_layer_input", "global_head_dim", "laurel_rank"], 2**20),
    **dict.fromkeys(["num_global_key_value_heads", "num_kv_shared_layers", "altup_num_inputs"], 2**10),
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input"], 2**24),
    **dict.fromkeys(["sliding_window", "max_position_embeddings"], 2**30),
    "num_hidden_layers": 2**10,
}
REAL = ("rms_norm_eps", "final_logit_softcapping", "altup_coef_clip")
FLAGS = (
    "tie_word_embeddings",
    "use_double_wide_mlp",
    "altup_correct_scale",
    "attention_bias",
    "attention_k_eq_v",
    "enable_moe_block",
)
ACTIVATION = "gelu_pytorch_tanh"


def find(source: str | Path, revision: str | None) -> Path:
    """The folder named, else what is shipped, else the Hub repository of that name, fetched or from the Hub's cache."""
    folder = Path(source).expanduser()
    if str(source) in SHIPPED and not folder.exists():
        folder = ASSETS / str(source)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for Hub ids, but {source} is a folder here; leave it out")
        return folder
    if folder.exists():
        raise ValueError(f"{source} is a file; give the folder that holds it and its config.json")
    if not HUB_ID.fullmatch(str(source)):
        raise ValueError(f"there is no folder {source}, and it cannot be a Hub id (owner/name) either")
    name = source if revision is None else f"{source} at revision {revision}"
    nowhere = f"there is no folder {source} here, and"
    try:
        return Path(huggingface_hub.snapshot_download(str(source), revision=revision, allow_patterns=WANTED))
    except GatedRepoError as e:
        raise ValueError(f"{name} is gated: accept its terms on the Hub, then `hf auth login`") from e
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as e:
        raise ValueError(f"{nowhere} the Hub does not know {name} (or it is private: `hf auth login`)") from e
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError) as e:
        raise ValueError(f"{nowhere} the Hub cannot be reached for {name}, which is not in its cache") from e


def stated(source: str | Path, revision: str | None = None) -> tuple[dict[str, Any], Path | None]:
    """config.json and its folder, where the checkpoint is here; a public one's is known without. Nothing is fetched."""
    name = str(source)
    if name in SHIPPED or Path(name).expanduser().exists() or not HUB_ID.fullmatch(name):
        folder = find(source, revision)
        return read_json(folder / "config.json"), folder
    cached = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        folder = Path(cached).parent
        return read_json(folder / "config.json"), folder
    if name not in KNOWN:
        raise ValueError(f"{name} is not here, and its shape is not known before it is")
    return KNOWN[name], None


def build(given: Mapping[str, Any], spare_kv: bool = False) -> Decoder:
    """The model that config.json describes, its weights random and, MLX being lazy, not yet made."""
    kind = given.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"config.json: model_type is {shown(kind)}; AGP opens {', '.join(FAMILIES)}")
    text = given.get("text_config")
    if text is None:
        text = given
    elif not isinstance(text, dict):
        raise ValueError(f"config.json: text_config is a {type(text).__name__} where an object was due")
    elif text.get("model_type", kind) not in (kind, f"{kind}_text"):
        raise ValueError(f"config.json: model_type is {kind}, but text_config says {clean(str(text['model_type']))}")
    if "tie_word_embeddings" in given:
        text = {"tie_word_embeddings": given["tie_word_embeddings"], **text}
    if "unified" in kind:
        text = {**text, **NO_TABLE}
    if spare_kv:
        text = {**text, "spare_kv": True}
    if wrong := impossible(text, FAMILIES[kind]):
        raise ValueError("config.json: " + "; ".join(wrong))
    family = FAMILIES[kind]
    try:
        return family.Model(family.Config.from_dict(text))
    except (TypeError, KeyError, AttributeError, IndexError, ArithmeticError) as e:
        raise ValueError(f"config.json does not describe a {kind}: {type(e).__name__} {clean(str(e))}") from e


def impossible(text: Mapping[str, Any], family: ModuleType) -> list[str]:
    """Values of the wrong kind, without effect here, or so large that just building the model would hang."""
    wrong = []
    for name, most in WHOLE.items():
        value = text.get(name)
        values = value if name == "intermediate_size" and isinstance(value, list) else [value]
        if any(v is not None and (type(v) is not int or not 0 <= v <= most) for v in values):
            wrong.append(f"{name} is {shown(value)}; a whole number up to {most} is needed")
    for names, fits, needed in ((REAL, positive, "a number between 1e-18 and 1e18"), (FLAGS, is_flag, "true or false")):
        odd = [name for name in names if text.get(name) is not None and not fits(text[name])]
        wrong += [f"{name} is {shown(text[name])}; {needed} is needed" for name in odd]
    if text.get("hidden_activation") not in (None, ACTIVATION):
        wrong.append(f"hidden_activation is {shown(text['hidden_activation'])}; AGP computes {ACTIVATION}")
    if text.get("spare_kv") and family is not gemma3n:
        wrong.append("spare_kv is for Gemma 3n; blocks of Gemma 4 that borrow have no keys and values of their own")
    return wrong


def is_flag(value: object) -> bool:
    return isinstance(value, bool)
