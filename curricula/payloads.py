"""What codecs keep of the teacher: the receiver's next token, and what it says when it goes on by itself."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.batch import continued
from agp.sites import At, Site
from curricula.clustered import clusters, mean, resampled
from curricula.exchange import by_hosts
from curricula.onward import TOGETHER, Onward
from heads.codec import Codec

Column = tuple[np.ndarray, np.ndarray]  # of each position: whether the token is the teacher's, and KL(teacher || it)


class Kept(NamedTuple):
    """Of each codec, over the same positions."""

    costs: dict[str, float]
    columns: dict[str, Column]
    cluster: np.ndarray  # of each position

    def table(self) -> dict[str, dict[str, Any]]:
        """Bytes a position, agreement and KL."""
        found = {}
        for name, (agrees, divergence) in self.columns.items():
            share, kl = (mean(values, self.cluster) for values in (agrees, divergence))
            found[name] = {"bytes": self.costs[name], "agreement": share.value, "interval": list(share.interval)}
            found[name] |= {"kl": kl.value, "kl_interval": list(kl.interval)}
        return found

    def gain(self, name: str, other: str) -> tuple[Any, Any]:
        """Agreement beyond that of another, and the KL by its own: over the same positions, so by pairs."""
        (right, kl), (its_right, its_kl) = self.columns[name], self.columns[other]
        more = mean(right.astype(float) - its_right, self.cluster)
        return more, resampled(lambda w: float((w * kl).sum() / max((w * its_kl).sum(), 1e-30)), self.cluster)


def kept(codecs: Mapping[str, Codec], test: Onward, documents: Sequence[int], group: Any = None) -> Kept:
    at, agrees, divergence = test.read(documents, [partial(through, codec) for codec in codecs.values()], group)
    columns = {name: (agrees[:, i], divergence[:, i]) for i, name in enumerate(codecs)}
    return Kept({name: codec.cost for name, codec in codecs.items()}, columns, clusters(test.features)[at])


def through(codec: Codec, states: mx.array, told: mx.array) -> mx.array:
    """What comes out of the bytes; they are one to one with the codes."""
    return codec.restored(codec.codes(states, told), told)


def followed(codec: Codec, test: Onward, documents: Sequence[int], count: int, group: Any = None) -> np.ndarray:
    """Of each document: whether all of so many greedy tokens are the teacher's, when the state at the end of its prompt
    went through bytes."""
    model = test.model

    def work(some: Sequence[int]) -> dict[str, np.ndarray]:
        asked = [test.features.of(d, "ids")[: test.features.of(d, "first")].tolist() for d in some]
        plain = continued(model, asked, max_tokens=count)
        last = model.embed_vectors(mx.array([prompt[-1] for prompt in asked])).astype(mx.float32)
        sent = continued(model, asked, max_tokens=count, visit=sending(codec, test.tap, last))
        return {"same": np.array([a == b for a, b in zip(plain, sent, strict=True)])}

    batches = [documents[at : at + TOGETHER] for at in range(0, len(documents), TOGETHER)]
    return np.concatenate([of["same"] for of in by_hosts(group, batches, work, "going on greedily")])


def sending(codec: Codec, tap: int, told: mx.array) -> At:
    """At the last position, the state that comes out of real bytes."""

    def act(site, fn, x):
        y = fn(x)
        last = y[:, -1].reshape(len(y), -1)
        state = codec.unpack(codec.pack(last, told), told).reshape(y[:, -1:].shape).astype(y.dtype)
        return mx.concatenate([y[:, :-1], state], axis=1)

    return At([Site(tap, "block")], act)
