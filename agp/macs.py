"""How many multiplications a token costs, part by part: what an early exit saves is a share of them."""

from typing import Any, NamedTuple

from agp.adapters import Adapted, linears, shape
from agp.models.decoder import Decoder
from agp.targets import block_of


class Macs(NamedTuple):
    """Multiply-adds of one token."""

    inputs: int  # before the first block
    blocks: tuple[int, ...]
    head: int  # all logits

    def upto(self, stop: int) -> int:
        """Of the first `stop` blocks, without a head."""
        return self.inputs + sum(self.blocks[:stop])

    @property
    def whole(self) -> int:
        return self.upto(len(self.blocks)) + self.head


def macs(model: Decoder, context: int = 0) -> Macs:
    """Beside a `context` of so many tokens, of which sliding windows see no more than they hold."""
    config, blocks, inputs = model.config, [0] * model.config.num_layers, 0
    for path, linear in linears(model).items():
        block = block_of(path, len(blocks))
        if 0 <= block < len(blocks):
            blocks[block] += area(linear)
        elif block < 0:
            inputs += area(linear)
    layers: Any = model.layers
    for i, block in enumerate(layers):
        seen = min(context, config.window(i) or context)
        blocks[i] += 2 * area(block.self_attn.q_proj) // config.hidden_size * seen
    return Macs(inputs, tuple(blocks), config.vocab_size * config.hidden_size)


def joining(model: Decoder) -> int:
    """Of bringing the streams of a state together, as the final norm takes it."""
    return sum(area(linear) for path, linear in linears(model).items() if path.startswith("altup_unembed"))


def area(linear: Any) -> int:
    """An adapter is not counted: where speed matters it is part of the weights."""
    rows, columns = shape(linear.base if isinstance(linear, Adapted) else linear)
    return rows * columns
