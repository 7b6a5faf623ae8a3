"""The per-layer embedding table left on disk: half of E2B, of which a token needs one row."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from agp.memory import available
from agp.models.fill import all_finite
from agp.models.tensors import Tensor
from agp.quant import Packing

NAME = "embed_tokens_per_layer"
SHARE = 0.5  # of the memory there is, which all weights together may take before the table stays on disk


class DiskTable(nn.Module):
    """Ids in, rows out, the same bits as the table in memory gives. It reads the ids: call it outside mx.compile.

    The files are mapped and read as rows are asked for; they must stay as they are while the model is in use.
    """

    def __init__(self, parts: dict[str, Tensor], packing: Packing | None, dtype: mx.Dtype | None):
        super().__init__()
        self._parts, self._packing, self._dtype = Parts(parts), packing, dtype
        rows, width = parts["weight"].shape
        self.num_embeddings = rows
        self.dims = width if packing is None else width * 32 // packing.bits

    def __call__(self, ids: mx.array) -> mx.array:
        rows = np.array(ids)
        if rows.size and not 0 <= rows.min() <= rows.max() < self.num_embeddings:
            raise ValueError(
                f"ids go from {rows.min()} to {rows.max()}; the table has rows 0..{self.num_embeddings - 1}"
            )
        weight = self._read("weight", rows)
        if self._packing is None:
            return weight
        scales, biases = self._read("scales", rows), self._read("biases", rows)
        return mx.dequantize(weight, scales, biases, self._packing.group_size, self._packing.bits)

    def _read(self, kind: str, ids: np.ndarray) -> mx.array:
        tensor, mapped = self._parts[kind]
        rows = mapped[ids]
        if tensor.dtype == "U32":
            return mx.array(rows)
        out = mx.array(rows).view(mx.bfloat16) if tensor.dtype == "BF16" else mx.array(rows)
        out = out if self._dtype is None else out.astype(self._dtype)  # a narrower type may make infinities
        if not all_finite(out):
            each = zip(ids.reshape(-1), out.reshape(ids.size, -1), strict=True)
            bad = sorted({int(i) for i, row in each if not all_finite(row)})
            raise ValueError(f"{tensor.name} holds NaN or infinity in rows {bad}")
        return out

    def _extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.dims}, {self._packing or 'as stored'}, on disk"


class Parts:
    """Tensors with their maps, kept where nn.Module does not look for parameters."""

    def __init__(self, parts: dict[str, Tensor]):
        self._parts = {kind: (tensor, tensor.map()) for kind, tensor in parts.items()}

    def __getitem__(self, kind: str) -> tuple[Tensor, np.ndarray]:
        return self._parts[kind]


def stays_on_disk(choice: str | None, weights: int) -> bool:
    """As chosen, else by whether `weights` bytes, the table's among them, would crowd this machine."""
    return choice == "disk" if choice else weights > SHARE * available()
