"""A plan, as Core ML's classes hold it: recorded in a file, since there is none to be asked off a Mac."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from coremltools.models.compute_plan import (
    MLComputePlanCost,
    MLComputePlanDeviceUsage,
    MLModelStructure,
    MLModelStructureProgram,
    MLModelStructureProgramBlock,
    MLModelStructureProgramFunction,
    MLModelStructureProgramOperation,
)

from export.plan import NAMES, Planned, elsewhere, planned, shares

RECORDED = json.loads(Path(__file__).with_name("plan.json").read_text())
CLASSES = {short: type(name, (), {}) for name, short in NAMES.items()}


def device(short):
    return CLASSES[short]()


def plan():
    """Core ML's own classes around what was recorded; what is asked of its library is looked up there."""
    ops = [MLModelStructureProgramOperation({}, of["operator"], [], [], of) for of in RECORDED]
    block = MLModelStructureProgramBlock([], ops, [])
    program = MLModelStructureProgram({"many": MLModelStructureProgramFunction([], block)})

    def usage(op):
        of = op.__proxy__
        found = MLComputePlanDeviceUsage(device(of["preferred"]), [device(name) for name in of["supported"]])
        return None if of.get("unknown") else found

    return SimpleNamespace(
        model_structure=MLModelStructure(None, program, None),
        get_compute_device_usage_for_mlprogram_operation=usage,
        get_estimated_cost_for_mlprogram_operation=lambda op: MLComputePlanCost(op.__proxy__["cost"]),
    )


def test_operations_are_told_with_their_devices_and_what_is_stored_is_none():
    found = planned(plan(), "many")
    assert [(of.type, of.preferred) for of in found] == [("conv", "NE"), ("conv", "NE"), ("erf", "CPU"), ("add", "CPU")]
    assert found[0] == Planned("many", "conv", "NE", ["CPU", "GPU", "NE"], 0.5)
    assert planned(plan(), "one") == []


def test_shares_and_what_runs_elsewhere_and_why():
    found = planned(plan(), "many")
    assert shares(found)["NE"] == pytest.approx({"operations": 0.5, "cost": 0.8})
    assert elsewhere(found) == [("erf", "CPU", 1, False), ("add", "CPU", 1, True)]
