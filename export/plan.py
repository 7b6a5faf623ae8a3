"""Where Core ML means to run each operation of a compiled package, and where it could."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

NAMES = {"MLNeuralEngineComputeDevice": "NE", "MLGPUComputeDevice": "GPU", "MLCPUComputeDevice": "CPU"}
STORED = ("const", "constexpr")  # no operations


class Planned(NamedTuple):
    entry: str
    type: str
    preferred: str
    supported: list[str]
    cost: float  # its share of the whole, as the framework estimates it


def planned(plan: Any, entry: str) -> list[Planned]:
    """Of an entry's operations in their order; none where the plan does not tell."""
    function = plan.model_structure.program.functions.get(entry)
    found = []
    for op in function.block.operations if function is not None else []:
        kind = op.operator_name.rpartition(".")[2]  # without the version
        usage = plan.get_compute_device_usage_for_mlprogram_operation(op)
        if kind.startswith(STORED) or usage is None:
            continue
        cost = plan.get_estimated_cost_for_mlprogram_operation(op)
        could = sorted(map(named, usage.supported_compute_devices))
        found.append(Planned(entry, kind, named(usage.preferred_compute_device), could, cost.weight if cost else 0.0))
    return found


def named(device: Any) -> str:
    return NAMES.get(type(device).__name__, type(device).__name__)


def shares(of: Iterable[Planned]) -> dict[str, dict[str, float]]:
    """By device, of the operations and of their cost."""
    rows = list(of)
    count, whole = Counter(row.preferred for row in rows), sum(row.cost for row in rows) or 1.0
    cost = {device: sum(row.cost for row in rows if row.preferred == device) for device in count}
    return {device: {"operations": n / len(rows), "cost": cost[device] / whole} for device, n in count.most_common()}


def elsewhere(of: Iterable[Planned]) -> list[tuple[str, str, int, bool]]:
    """What is not for the Neural Engine: operation, device, how many, and whether the engine could run it."""
    found = Counter((row.type, row.preferred, "NE" in row.supported) for row in of if row.preferred != "NE")
    return [(kind, device, count, could) for (kind, device, could), count in found.most_common()]
