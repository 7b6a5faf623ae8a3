"""Every operation that heads are described in, on two inputs."""

import numpy as np

from export.ops import Entry

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


ENTRY = Entry(INPUTS, described)


def feeds():
    return {name: RNG.normal(size=(1, c, 1, s)).astype(np.float16) for name, (c, s) in INPUTS.items()}
