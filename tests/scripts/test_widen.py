"""A widened model says what the narrow one says, at every exit; only its cost grows.

Seen to fail when broken: an eps that is not divided, numbers of a head moved together, values scaled at `o_proj` twice.
"""

import mlx.core as mx
import numpy as np
import pytest

from agp.macs import macs
from curricula.teacher import folded, teacher
from export.ruler import measure
from heads import bundle
from scripts.bench.widen import headed, widened
from tests.curricula.run import smoke
from tests.toys import text, toy


@pytest.mark.parametrize("name", ["shares some", "five to one", "half of a head turns", "no soft cap"])
@pytest.mark.parametrize("k", [2, 3])
def test_a_wide_toy_says_the_same(name, k):
    model, tokens = toy("gemma4", name), text()
    wide = widened(model, k)
    assert measure("logits", wide(tokens).logits, model(tokens).logits).passed
    assert macs(wide).blocks == tuple(k * k * each for each in macs(model).blocks)


def test_heads_of_a_run_say_the_same_of_wide_states():
    loaded = teacher(smoke() / "domain")
    folded(loaded.model)
    heads = bundle.load(smoke(), loaded.model)
    wide = headed(heads, widened(loaded.model, 2), 2)
    tokens = mx.array([[2, 8, 9, 40, 41, 300, 12]])
    found = []
    for of in (heads, wide):
        model, states, below = of.decoder, [], 0
        carried, stream = of.late.begun(mx.zeros((1, 7, of.window - 1, model.config.hidden_size))), model.embed(tokens)
        for n, tap in enumerate(of.taps):
            stream = model.blocks(stream, start=below, stop=tap + 1)
            states, below = [*states, stream.hidden], tap + 1
            hope, carried = of.hope(stream.hidden, carried)
            read = of.mend(mx.stack(states), stream.place, stream.shared).state
            look = of.look(carried, read)
            found.append((n, hope, model.head(read), look.told.leave, look.told.vitality))
    for (n, *narrow), (_, *broad) in zip(found[:4], found[4:], strict=True):
        for a, b in zip(narrow, broad, strict=True):
            assert np.array(b) == pytest.approx(np.array(a), abs=2e-3), n
