"""Named shapes: which models can be made, with what data, and which smaller models are nested in them."""

from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 2048
CONTEXT = 512  # tokens a training row
ROWS = 4  # a step
SPARSE_BLOCKS = 3


@dataclass(frozen=True)
class Shape:
    family: str  # gemma4 or gemma3n
    hidden: int = 192
    blocks: int = 12
    producers: int = 5
    heads: int = 3
    mlp: int = 192  # Gemma 4 doubles it in the blocks that borrow keys and values
    per_layer: int = 64
    head: int = 64
    head_full: int = 128
    window: int = 64
    nested: tuple[int, ...] = ()  # narrower MLPs trained along
    drop: tuple[int, ...] = ()  # what the smallest regime leaves out, right after the last producer
    turns: tuple[int, ...] = ()  # the first step of each later stage of training
    source_share: tuple[float, ...] = (0.5, 0.25)  # of the rows, by stage; the last one stays
    answer_weight: tuple[float, ...] = (3.0, 3.0, 3.0, 10.0)  # beside 1 for a token of source, by stage
    seed: int = 0
    notes: str = field(default="", compare=False)

    def source_rows(self, stage: int) -> int:
        """How many rows of a step are source, the rest being items."""
        return round(ROWS * at(self.source_share, stage))


def at(values, stage: int):
    """The value of a stage, where the last one given stays."""
    return values[min(stage, len(values) - 1)]


SHAPES = {
    "tiny-gemma4": Shape("gemma4", turns=(3113, 5850, 7012, 8045)),
    "tiny-gemma3n": Shape("gemma3n", mlp=256, nested=(192, 128), drop=(5, 6), turns=(1828, 3870, 4730, 5491)),
    "tiny-gemma4-m": Shape("gemma4", hidden=256, heads=4, mlp=256, notes="size ladder, middle"),
    "tiny-gemma4-l": Shape("gemma4", hidden=384, blocks=15, heads=6, mlp=384, notes="size ladder, large"),
    "tiny-gemma4-code": Shape("gemma4", source_share=(1.0,), notes="the same shape, source code only"),
    "tiny-gemma3n-l": Shape("gemma3n", hidden=256, blocks=15, heads=4, mlp=512, nested=(384, 256), drop=(5, 6, 7)),
    "tiny-gemma4-other": Shape("gemma4", mlp=256, seed=1, source_share=(0.35,), answer_weight=(2.0,),
                               notes="a second base: other seed, mixture and width"),
}  # fmt: skip


def layer_types(blocks: int) -> list[str]:
    """Four sliding, one full, over and over; the last is full."""
    types = ["full_attention" if (i + 1) % 5 == 0 else "sliding_attention" for i in range(blocks)]
    types[-1] = "full_attention"
    return types


def configuration(name: str):
    """The transformers config of a shape."""
    from transformers import Gemma3nTextConfig, Gemma4TextConfig

    shape = SHAPES[name]
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size": shape.hidden,
        "hidden_size_per_layer_input": shape.per_layer,
        "num_hidden_layers": shape.blocks,
        "num_kv_shared_layers": shape.blocks - shape.producers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": 1,
        "head_dim": shape.head,
        "intermediate_size": shape.mlp,
        "layer_types": layer_types(shape.blocks),
        "sliding_window": shape.window,
        "final_logit_softcapping": 30.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    if shape.family == "gemma4":
        common |= {"global_head_dim": shape.head_full, "use_double_wide_mlp": True}
        return Gemma4TextConfig(**common)
    sparsity = [0.95] * SPARSE_BLOCKS + [0.0] * (shape.blocks - SPARSE_BLOCKS)
    return Gemma3nTextConfig(**common, activation_sparsity_pattern=sparsity, altup_num_inputs=4, laurel_rank=64)


def ladder(name: str) -> dict[str, dict[str, list[int]]]:
    """Regime name -> widths of the kept blocks and the blocks left out; the first is the whole model."""
    shape = SHAPES[name]
    if shape.family != "gemma3n":
        return {"full": {"widths": [], "drop": []}}
    found = {"full": {"widths": [shape.mlp] * shape.blocks, "drop": []}}
    for width in shape.nested:
        found[f"width_{width}"] = {"widths": [width] * shape.blocks, "drop": []}
    if shape.drop:
        found["small"] = {"widths": [min(shape.nested)] * (shape.blocks - len(shape.drop)), "drop": list(shape.drop)}
    return found
