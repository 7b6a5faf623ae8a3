"""A description in MLX says what it says in double precision."""

import mlx.core as mx
import numpy as np

from export import inmlx
from export.ops import Plain
from tests.export import operations
from tests.export.operations import ENTRY, described


def test_every_operation_is_the_one_that_was_described():
    feeds = operations.feeds()
    wanted = described(Plain(), {name: x.astype(np.float64) for name, x in feeds.items()})
    found = inmlx.compiled(ENTRY)({name: mx.array(x.astype(np.float32)) for name, x in feeds.items()})
    assert found.keys() == wanted.keys()
    for name, of in wanted.items():
        np.testing.assert_allclose(np.array(found[name]), of, rtol=1e-4, atol=1e-5 * np.abs(of).max(), err_msg=name)
