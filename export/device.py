"""A package on this Mac: predictions on each compute unit, and what Core ML plans."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.models.compute_plan import MLComputePlan
from coremltools.models.utils import compile_model

from export.plan import Planned, planned

HERE = sys.platform == "darwin"


class Device:
    """An entry of a compiled package, on some compute unit."""

    def __init__(self, compiled: Path, entry: str, unit: str):
        chosen = getattr(ct.ComputeUnit, unit)
        self.model: Any = ct.models.CompiledMLModel(str(compiled), compute_units=chosen, function_name=entry)

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.asarray(x, np.float32) for name, x in self.model.predict(dict(feed)).items()}

    def framework(self) -> float | None:
        told = getattr(getattr(self.model, "_proxy", None), "get_last_predict_duration_in_nano_seconds", lambda: None)()
        return None if told is None else told / 1e9


class Mac:
    """What is asked of the machine; a test stands another in its place."""

    def compile(self, package: Path, folder: Path) -> Path:
        return Path(compile_model(str(package), str(folder / "heads.mlmodelc")))

    def open(self, compiled: Path, entry: str, unit: str) -> Device:
        return Device(compiled, entry, unit)

    def plan(self, compiled: Path, entry: str, unit: str) -> list[Planned]:
        return planned(MLComputePlan.load_from_path(str(compiled), getattr(ct.ComputeUnit, unit)), entry)

    def brand(self) -> str:
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
