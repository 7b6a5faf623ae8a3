"""Large weights in fewer bits: whole numbers with a scale a row, or places in a palette that all of a weight share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from coremltools._deps import kmeans1d
from coremltools.converters.mil import Builder
from coremltools.converters.mil.mil.types.type_mapping import np_uint6_dtype

mb: Any = Builder
BITS = 6  # of a palette
HALF = np.float16


class Smaller(NamedTuple):
    kind: str  # of KINDS
    least: int  # bytes of half precision

    def takes(self, weight: np.ndarray) -> bool:
        return weight.nbytes >= self.least


class Stored(NamedTuple):
    variable: Any
    parts: list[np.ndarray]  # as they lie in the file


def int8(weight: np.ndarray) -> Stored:
    """Of each row, O I 1 K, the largest is 127 steps."""
    size = np.abs(weight.astype(np.float64)).max((1, 2, 3), keepdims=True)
    scale = np.maximum(size / 127, 2.0**-24).astype(HALF)
    steps = np.clip(np.round(weight / scale.astype(np.float64)), -127, 127).astype(np.int8)
    return Stored(mb.constexpr_blockwise_shift_scale(data=steps, scale=scale), [steps, scale])


def palette(weight: np.ndarray) -> Stored:
    """Of the colours for which the sum of squares is least."""
    values, places, counts = np.unique(weight, return_inverse=True, return_counts=True)
    found = kmeans1d.cluster(values.tolist(), min(len(values), 1 << BITS), weights=counts.tolist())
    lut = np.zeros((1, 1, 1, 1, 1 << BITS, 1), HALF)
    lut.flat[: len(found.centroids)] = found.centroids
    indices = np.array(found.clusters, np.uint8)[places].reshape(weight.shape)
    return Stored(mb.constexpr_lut_to_dense(indices=indices.astype(np_uint6_dtype), lut=lut), [packed(indices), lut])


def packed(indices: np.ndarray) -> np.ndarray:
    """Without the bits that are not used."""
    bits = np.unpackbits(indices.reshape(-1, 1), axis=1, bitorder="little")[:, :BITS]
    return np.packbits(bits.reshape(-1), bitorder="little")


KINDS: dict[str, Callable[[np.ndarray], Stored]] = {"int8": int8, "palette": palette}
