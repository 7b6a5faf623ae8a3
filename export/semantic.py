"""The semantic head as arithmetic on columns: what concepts score, and how much of each latent there is.

Latents are taken by their thresholds, never by being the most. Slopes are by the largest of them, so that no square is
too large or too small for half precision, however little of a state is left.
"""

import numpy as np

from export.ops import Columns, Ops, numbers
from heads.semantic import Head
from heads.trajectory import UNIT

LEAST = 1e-4  # slopes: less than that is nothing, of states of unit size
NEVER = 3e4  # what no state reaches, and half precision can hold


def code(o: Ops, head: Head, states: Columns) -> tuple[Columns | None, Columns]:
    """Scores of concepts, C, none where there are none; and values of latents, C + W."""
    atoms, seen = numbers(head.directions()), o.norm(states, UNIT)
    limits, levels = (np.minimum(numbers(of), NEVER) for of in (head.limits, head.levels))
    count = len(limits)
    scores = o.conv(seen, numbers(head.naming.weight), numbers(head.naming.bias)) if count else None
    named = None if scores is None else o.above(scores, limits, "concepts")
    free, values, left, back = None, None, o.sub(seen, numbers(head.mean)), atoms.T
    for step in range(head.config.picks + head.config.settle):
        along = o.conv(left, atoms)
        if step < head.config.picks:
            new = o.above(o.cut(along, count, len(atoms)), levels[step], "latents")
            free = new if free is None else o.binary("maximum", free, new)
        active = free if named is None else o.concat([named, free])
        slope = o.mul(along, active)
        steep = o.reduce("max", o.binary("maximum", slope, o.mul(slope, -1.0)))
        slope = o.binary("div", slope, o.binary("maximum", steep, LEAST))
        moved = o.conv(slope, back)
        below = o.binary("maximum", o.reduce("sum", o.mul(moved, moved)), LEAST)
        stride = o.mul(steep, o.binary("div", o.reduce("sum", o.mul(slope, slope)), below))
        far = o.mul(slope, stride)
        values = far if values is None else o.add(values, far)
        left = o.sub(left, o.mul(moved, stride))
    return scores, o.binary("maximum", values, 0.0)
