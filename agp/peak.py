"""The most memory a training step of Gemma 4 takes, from the shapes of model and batch alone.

What is kept grows with the blocks. On top of it comes the larger of two: one block computed again and gone back
through, or the head's chunk of logits. The factors say how many arrays of a kind are there at once, for MLX has many
operations under way. They fit measured steps on a CPU (`agp bench memory`), where packed layers are unpacked piece by
piece. A GPU multiplies with packed weights as they are and keeps no attention scores, so there it is less.
"""

from agp.losses import CHUNK
from agp.models.gemma4 import Config
from agp.quant import PIECE

STATE = 1.9  # of each block, and of the gradients' arrays:
TOLD = 0.23
TRAINED = 1.6
BLOCK = {"hidden": 8.9, "mlp": 15.4, "heads": 9.0, "scores": 3.4}
LOGITS, LOGITS_PACKED = 11.2, 22.5  # packed weights come with numbers of 16 bits, and so with more conversions
PIECES = 25.5  # of packed weights
FLOAT = 4  # bytes


def step_bytes(config: Config, rows: int, length: int, trained: int, packed: bool) -> float:
    """Beside weights, adapter and optimizer: `trained` numbers are learned, of rows of `length` tokens."""
    tokens, count = rows * length, config.num_layers
    kept = tokens * count * (STATE * config.hidden_size + TOLD * config.hidden_size_per_layer_input) + TRAINED * trained
    attended = rows * length**2 * config.num_attention_heads
    widths = {
        "hidden": tokens * config.hidden_size,
        "mlp": tokens * max(config.widths),
        "heads": tokens * config.num_attention_heads * max(config.head_dims),
        "scores": attended,
    }
    block = sum(factor * widths[name] for name, factor in BLOCK.items())
    largest = config.vocab_size * config.hidden_size  # of the packed arrays
    head = (LOGITS_PACKED if packed else LOGITS) * CHUNK * config.vocab_size
    return FLOAT * (kept + max(block, head) + (PIECES * min(PIECE, largest) if packed else 0))
