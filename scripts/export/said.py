"""What a run's heads say in MLX, as decoding asks them, under the names that the package's outputs have."""

import mlx.core as mx
import numpy as np

from agp.layers import Place
from curricula.features import Features
from curricula.positions import earlier
from export.program import senders
from export.trajectory import Said
from heads.bundle import Bundle
from heads.trajectory import Seen


def said(bundle: Bundle, features: Features, d: int) -> dict[str, np.ndarray]:
    """Of all positions of a document."""
    batch = features.together([d])
    count, decoder = batch.states.shape[2], bundle.decoder
    at, place = features.begins[d] + np.arange(count), Place(batch.end, batch.pad)
    mended = [head(batch.states[: head.taps], place, batch.shared) for head in bundle.modules]
    now = mx.moveaxis(batch.states[:, 0].reshape(len(batch.states), count, -1), 0, 1)
    before = mx.array(earlier(features, at, bundle.window))
    whole = mx.stack([decoder.normed(state)[0] for state in batch.states], axis=1)
    better = mx.stack([decoder.norm(of.state)[0] for of in mended], axis=1)
    plain = bundle.plain(Seen(now, before, whole, bundle.glance(whole).facts))
    late = bundle.late(Seen(now, before, better, bundle.glance(better).facts))
    found = {name: getattr(plain, name) for name in Said._fields}
    found |= {f"{name}_mended": getattr(late, name) for name in Said._fields}
    found |= {"hope": late.hope, "mended": better}
    found["mixing"] = mx.concatenate([of.weights[0] for of in mended], axis=-1)
    code, _, _ = bundle.names(now[:, bundle.taps.index(bundle.named)], exactly=False)
    found |= {"latents": code.values} | ({"concepts": code.scores} if bundle.names.config.concepts else {})
    return {name: np.array(of).reshape(count, -1) for name, of in found.items()} | sent(bundle, features, d, now)


def sent(bundle: Bundle, features: Features, d: int, now: mx.array) -> dict[str, np.ndarray]:
    """Levels of sizes; and places among levels, from the middle."""
    found, first = {}, features.of(d, "first")
    told = bundle.decoder.embed_vectors(mx.array(features.of(d, "ids")[first - 1 : -1])).astype(mx.float32)
    for name, head in senders(bundle).items():
        size, unit = head.divided(now[:, bundle.taps.index(bundle.sent)])
        place = head.place(unit - head.expected(told))
        found |= {f"size_{name}": np.array(size), f"levels_{name}": np.array(place)}
    return found
