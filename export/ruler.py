"""One way to say how far apart two arrays are, and one table of what is near enough."""

from typing import NamedTuple

import numpy as np

TOLERANCE = {  # (largest error over the reference's largest value, lowest cosine)
    "float32": (3e-5, 1 - 1e-8),
    "float16": (5e-3, 1 - 1e-4),
    "bfloat16": (4e-2, 1 - 1e-3),
}


class Distance(NamedTuple):
    name: str
    peak_error: float  # max |ours - theirs| / max |theirs|
    cosine: float
    kind: str

    @property
    def passed(self) -> bool:
        error, cosine = TOLERANCE[self.kind]
        return self.peak_error <= error and self.cosine >= cosine

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAIL"
        return f"{verdict:<4} {self.name:<32} peak error {self.peak_error:.1e}, cosine {self.cosine:.8f} ({self.kind})"


def measure(name: str, ours, theirs, kind: str = "float32") -> Distance:
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{name}: ours is {a.shape}, theirs is {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"{name}: not finite (ours {np.isfinite(a).mean():.1%}, theirs {np.isfinite(b).mean():.1%})")
    peak, size = np.abs(a - b).max(), max(np.linalg.norm(a), np.linalg.norm(b))
    if not size:
        return Distance(name, 0.0, 1.0, kind)
    cosine = (a * b).sum() / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300)
    return Distance(name, float(peak / max(np.abs(b).max(), 1e-300)), float(cosine), kind)
