"""Each rule names the operation that breaks it, in a program that breaks nothing else."""

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import get_new_symbol, types

from export.coreml import TARGET
from export.evaluate import load
from export.lint import lint, shaped
from scripts import cli

SHAPE = (1, 64, 1, 64)
HALF = np.float16


def made(tmp_path, describe, shape=SHAPE, dtype=types.fp16, **how):
    """A package of one input, with no pass over it that would mend what is wrong."""
    program = mb.program(input_specs=[mb.TensorSpec(shape, dtype=dtype)], opset_version=TARGET)(describe)
    pipeline = ct.PassPipeline(["common::dead_code_elimination"], "none")
    how = {"minimum_deployment_target": TARGET, "skip_model_load": True, "pass_pipeline": pipeline} | how
    ct.convert(program, **how).save(str(tmp_path / "x.mlpackage"))
    return tmp_path / "x.mlpackage"


def rules(found):
    return {of.rule for of in found if of.fails}


def test_what_is_as_it_should_be_passes_without_a_word(tmp_path, capsys):
    weight = np.ones((64, 64, 1, 1), HALF)
    package = made(tmp_path, lambda x: mb.conv(x=mb.gelu(x=x, mode="TANH_APPROXIMATION"), weight=weight))
    assert lint(load(package)) == []
    assert cli.main(["lint", str(package)]) == 0
    assert "0 to be mended, 0 worth knowing" in capsys.readouterr().out


FAILS = {
    "float32": (lambda x: mb.cast(x=mb.exp(x=mb.cast(x=x, dtype="fp32")), dtype="fp16"), "precision"),
    "topk": (lambda x: mb.topk(x=x, k=4, axis=1)[0], "placement"),
    "cumsum": (lambda x: mb.cumsum(x=x, axis=1), "placement"),
    "gather": (
        lambda x: mb.gather(x=x, indices=np.array([1, 2], np.int32), axis=1, validate_indices=False),
        "placement",
    ),
    "reduce_prod": (lambda x: mb.reduce_prod(x=x, axes=[1], keep_dims=True), "placement"),
    "layer_norm": (lambda x: mb.layer_norm(x=x, axes=[1], epsilon=HALF(1e-12)), "epsilon"),
    "a constant (64, 64, 1, 1) is beyond": (
        lambda x: mb.conv(x=x, weight=np.full((64, 64, 1, 1), np.inf, HALF)),
        "constant",
    ),
    "most of a constant": (lambda x: mb.conv(x=x, weight=np.full((64, 64, 1, 1), 2e-7, HALF)), "constant"),
    "reduce_log_sum_exp": (lambda x: mb.reduce_log_sum_exp(x=x, axes=[1], keep_dims=True), "overflow"),
}


@pytest.mark.parametrize("name", FAILS)
def test_what_is_wrong_is_named_with_its_fix(name, tmp_path, capsys):
    describe, rule = FAILS[name]
    package = made(tmp_path, describe)
    found = [of for of in lint(load(package)) if of.fails]
    assert rule in {of.rule for of in found} and any(name in of.what or name == "float32" for of in found)
    assert all(of.fix for of in found)
    assert cli.main(["lint", str(package)]) == 1
    assert f"FAIL  {rule}: main: " in capsys.readouterr().out


def test_a_weight_beyond_half_precision_leaves_its_operation_in_float32(tmp_path):
    """As the usual conversion does it, without a word."""
    weight = np.ones((64, 64, 1, 1), np.float32)
    weight[0, 0] = 1e5
    how = {"pass_pipeline": None, "compute_precision": ct.precision.FLOAT16}
    package = made(tmp_path, lambda x: mb.conv(x=x, weight=weight), dtype=types.fp32, **how)
    found = [of for of in lint(load(package)) if of.fails]
    assert any(of.what == "conv computes in fp32" for of in found), found


def test_shapes_that_may_change_are_named(tmp_path):
    spec = mb.TensorSpec((1, 64, 1, get_new_symbol()), dtype=types.fp16)
    program = mb.program(input_specs=[spec], opset_version=TARGET)(lambda x: mb.exp(x=x))
    given = [ct.TensorType(name="x", shape=ct.Shape((1, 64, 1, ct.RangeDim(1, 64, 8))))]
    package = tmp_path / "range.mlpackage"
    ct.convert(program, minimum_deployment_target=TARGET, skip_model_load=True, inputs=given).save(str(package))
    assert "dynamic shape" in rules(lint(load(package)))


def test_ranks_beyond_five_are_named():
    """coremltools writes none; other tools might."""
    assert [of.rule for of in shaped("main", "reshape", (1, 2, 2, 2, 8, 64))] == ["rank"]


def test_what_is_too_large_for_an_axis_is_named(tmp_path):
    package = made(tmp_path, lambda x: mb.concat(values=[x] * 3, axis=3), shape=(1, 1, 1, 8192))
    assert rules(lint(load(package))) == {"size"}


def test_single_positions_and_what_nobody_measured_are_notes(tmp_path):
    package = made(tmp_path, lambda x: mb.erf(x=mb.slice_by_index(x=x, begin=[0, 0, 0, 1], end=[1, 64, 1, 2])))
    found = lint(load(package))
    assert {of.rule for of in found} == {"last axis", "placement", "slice"} and not rules(found)


def test_what_is_no_package_is_said(tmp_path, capsys):
    assert cli.main(["lint", str(tmp_path)]) == 2
    assert "is no package, and holds no heads.mlpackage; `agp export RUN` makes one" in capsys.readouterr().err
