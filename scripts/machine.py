"""How fast a machine multiplies and how much it may hold: this one as measured, a Mac as assumed."""

import time
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from agp.adapters import attach
from agp.language import look_up, loss
from agp.macs import macs
from agp.memory import available
from agp.models.decoder import Decoder
from agp.packing import assemble
from agp.supervise import Example
from curricula import estimate
from curricula.stages import domain
from scripts.doctor import USABLE, matmul_speed

SHARE = 0.4  # of what products of matrices reach, or of what is published, where no step is measured
SMALL = 5e8  # bytes of weights up to which a step is tried
TIMED = 4  # rows of that step: more of them multiply no faster


class Machine(NamedTuple):
    name: str
    room: float  # bytes that a model may take
    rate: float  # multiply-adds a second
    number: int  # bytes of one that is not packed
    about: str  # how the rate is known


MAC = Machine(
    "16 GB Mac",
    12.7e9 * USABLE,
    SHARE * 4.3e12 / 2,
    2,
    f"assumed: an M4 with 10 GPU cores, {SHARE:.0%} of its 4.3 TFLOP/s; nothing has been measured on a Mac",
)


def here(config: domain.Config, model: Decoder) -> Machine:
    """By some rows of random tokens where the model is small, else by products of matrices."""
    number = 4 if mx.default_device() == mx.cpu else 2
    if estimate.weights(model, 4, table_on_disk=False) > SMALL:
        speed = matmul_speed()
        about = f"products of matrices run at {speed:,.0f} GFLOP/s, of which {SHARE:.0%} are assumed"
        return Machine("here", available() * USABLE, SHARE * speed * 1e9 / 2, number, about)
    attach(model, domain.designed(config, model))
    rng, words = np.random.default_rng(0), model.config.vocab_size
    learned = np.ones(config.length, bool)
    rows = [[Example("", rng.integers(words, size=config.length), learned)] for _ in range(min(config.rows, TIMED))]
    seconds = timed(model, look_up(model, assemble(rows)))
    count, tokens = macs(model, config.length // 2), len(rows) * config.length
    rate = tokens * (3 * count.upto(model.config.num_layers) + 2 * count.head) / seconds
    about = f"{len(rows)} rows of the domain stage take {seconds:.1f} s, {tokens / seconds:,.0f} tokens a second"
    return Machine("here", available() * USABLE, rate, number, about)


def timed(model, batch) -> float:
    """Of a step's gradient, the second time it is asked for."""
    graph = mx.compile(nn.value_and_grad(model, lambda *b: loss(model, *b)), inputs=model.state, outputs=model.state)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        mx.eval(graph(batch))
        seconds = time.perf_counter() - started
    return seconds
