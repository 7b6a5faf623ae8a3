"""The most memory a training step takes, and a harvest's batch, from the shapes of model and batch alone.

What is kept of a step grows with the blocks. On top of it comes the larger of two: one block computed again and gone
back through, or the head's chunk of logits. The factors say how many arrays of a kind are there at once, for MLX has
many operations under way. They fit measured steps on a CPU (`agp bench memory`), where packed layers are unpacked piece
by piece (measured of Gemma 4 alone). A GPU multiplies with packed weights as they are and keeps no attention scores, so
there it is less.
"""

from typing import NamedTuple

from agp.losses import CHUNK
from agp.models import gemma3n, gemma4
from agp.quant import PIECE

Config = gemma4.Config | gemma3n.Config


class Factors(NamedTuple):
    """How many arrays of a size there are at once."""

    state: float  # of each block and stream
    streams: float = 0.0  # inside a block, and so on:
    hidden: float = 0.0
    mlp: float = 0.0
    heads: float = 0.0
    scores: float = 0.0
    told: float = 0.23  # of each block
    logits: float = 0.0  # a chunk of them


STEP = {
    gemma4.Config: Factors(1.9, hidden=8.9, mlp=15.4, heads=9.0, scores=3.4, logits=11.2),
    gemma3n.Config: Factors(1.0, streams=1.2, hidden=34.0, mlp=12.8, heads=7.3, scores=5.0, logits=7.5),
}
FORWARD = {
    gemma4.Config: Factors(0.0, streams=9.0, mlp=2.9, heads=1.6, scores=1.1, told=2.8),
    gemma3n.Config: Factors(0.0, streams=4.8, hidden=1.2, mlp=4.0, told=2.5),
}
TRAINED = 1.6  # of the gradients' arrays
LOGITS_PACKED = 22.5  # packed weights come with numbers of 16 bits, and so with more conversions
PIECES = 25.5  # of packed weights
FLOAT = 4  # bytes


def step_bytes(config: Config, rows: int, length: int, trained: int, packed: bool) -> float:
    """Beside weights, adapter and optimizer: `trained` numbers are learned, of rows of `length` tokens."""
    of = STEP[type(config)]
    kept, block = arrays(config, of, rows, length, config.num_layers)
    largest = config.vocab_size * config.hidden_size  # of the packed arrays
    head = (LOGITS_PACKED if packed else of.logits) * CHUNK * config.vocab_size
    return FLOAT * (kept + TRAINED * trained + max(block, head) + (PIECES * min(PIECE, largest) if packed else 0))


def forward_bytes(config: Config, rows: int, length: int, blocks: int, packed: bool, number: int = FLOAT) -> float:
    """Beside the weights, without gradients: rows through the first `blocks`, at most their ends through the rest. A
    number has so many bytes."""
    kept, block = arrays(config, FORWARD[type(config)], rows, length, blocks)
    largest = config.vocab_size * config.hidden_size
    return number * (kept + block) + (FLOAT * PIECES * min(PIECE, largest) if packed else 0)


def arrays(config: Config, of: Factors, rows: int, length: int, blocks: int) -> tuple[float, float]:
    """Numbers that all blocks leave, and those of the widest of the first `blocks` while it is computed."""
    tokens, streams, heads = rows * length, streams_of(config), config.num_attention_heads
    kept = config.num_layers * (of.state * config.hidden_size * streams + of.told * config.hidden_size_per_layer_input)
    inside = (
        of.streams * config.hidden_size * streams
        + of.hidden * config.hidden_size
        + of.mlp * max(config.widths[:blocks])
        + of.heads * heads * max(head_dims(config)[:blocks])
        + of.scores * length * heads
    )
    return tokens * kept, tokens * inside


def streams_of(config: Config) -> int:
    return config.altup_num_inputs if isinstance(config, gemma3n.Config) else 1


def head_dims(config: Config) -> tuple[int, ...]:
    """Of each block."""
    return (config.head_dim,) * config.num_layers if isinstance(config, gemma3n.Config) else config.head_dims


def kv_heads(config: Config) -> tuple[int, ...]:
    """Likewise."""
    if isinstance(config, gemma3n.Config):
        return (config.num_key_value_heads,) * config.num_layers
    return config.kv_heads
