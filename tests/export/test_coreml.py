"""A saved package says what it was described to say: to the rounding of its weights, and of half precision."""

import numpy as np
import pytest

from export import coreml, evaluate
from export.ops import Entry, Plain

INPUTS = {"x": (24, 8), "y": (24, 8)}
RNG = np.random.default_rng(0)
WEIGHT, BIAS, WINDOW = (RNG.normal(size=shape).astype(np.float16) for shape in ((24, 24), (24,), (24, 24, 3)))


def each(o, x, y):
    """Every operation there is, by name."""
    small = o.mul(o.norm(x, 1e-6), 0.5)
    return {
        "conv": o.conv(x, WEIGHT, BIAS),
        "conv_without_bias": o.conv(x, WEIGHT),
        "conv_along_positions": o.conv(x, WINDOW, BIAS),
        "norm": o.norm(x, 1e-6),
        "gelu": o.gelu(x),
        "exp": o.unary("exp", small),
        "log": o.unary("log", o.unary("exp", small)),
        "tanh": o.unary("tanh", x),
        "erf": o.unary("erf", x),
        "round": o.unary("round", o.mul(x, 8.0)),
        "add": o.add(x, y),
        "add_channels": o.add(x, BIAS),
        "sub": o.sub(x, y),
        "mul": o.mul(x, 0.25),
        "div": o.binary("div", x, o.add(o.mul(y, y), 1.0)),
        "maximum": o.binary("maximum", x, y),
        "minimum": o.binary("minimum", x, 0.1),
        "most": o.reduce("max", x),
        "sum": o.reduce("sum", x),
        "softmax": o.softmax(o.mul(x, 3.0)),
        "match": o.match(x, y),
        "blend": o.blend(o.cut(x, 0, 5), o.match(o.cut(x, 0, 3), o.cut(y, 0, 3))),
        "where": o.where(x, y, x, 0.5),
        "where_number": o.where(x, 0.0, 1.0, o.mul(x, 0.0)),
        "concat": o.concat([x, o.mul(y, 2.0)]),
        "concat_positions": o.concat([x, o.mul(y, 2.0)], along=3),
        "cut": o.cut(o.mul(x, 3.0), 5, 9),
        "cut_positions": o.cut(o.mul(x, 3.0), 2, 7, along=3),
        "softplus": o.softplus(o.mul(x, 4.0)),
        "logsumexp": o.logsumexp(x),
    }


def described(o, given):
    return each(o, given["x"], given["y"])


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "each.mlpackage"
    coreml.save(path, {"main": Entry(INPUTS, described)}, "main")
    return evaluate.load(path)


@pytest.fixture(scope="module")
def feeds():
    return {name: RNG.normal(size=(1, c, 1, s)).astype(np.float16) for name, (c, s) in INPUTS.items()}


@pytest.mark.parametrize("exact, near", [(True, 2e-3), (False, 6e-3)])
def test_every_operation_is_the_one_that_was_described(exact, near, program, feeds):
    wanted = described(Plain(), {name: of.astype(np.float64) for name, of in feeds.items()})
    found = evaluate.run(program, "main", feeds, exact)
    assert found.keys() == wanted.keys()
    for name, of in wanted.items():
        assert found[name].dtype == (np.float64 if exact else np.float16)
        np.testing.assert_allclose(found[name], of, rtol=near, atol=near * np.abs(of).max(), err_msg=name)


def test_a_row_of_zeros_stays_one_and_a_large_one_does_not_overflow(program):
    feeds = {name: np.zeros((1, c, 1, s), np.float16) for name, (c, s) in INPUTS.items()}
    assert (evaluate.run(program, "main", feeds, exact=False)["norm"] == 0).all()
    feeds["x"] = np.full_like(feeds["x"], 9000)
    np.testing.assert_allclose(evaluate.run(program, "main", feeds, exact=False)["norm"], 1, rtol=2e-3)


def test_an_operation_of_which_nothing_is_known_is_named(program, feeds, monkeypatch):
    monkeypatch.delitem(evaluate.OPS, "erf")
    with pytest.raises(ValueError, match="is a erf, of which it is not known here what it computes"):
        evaluate.run(program, "main", feeds, exact=True)
