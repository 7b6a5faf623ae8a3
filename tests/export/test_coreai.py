"""An asset says what it was described to say, by Apple's own runtime; what is in it is told by its digest."""

import os
import subprocess
import sys

import numpy as np
import pytest

from export.ops import Entry, Plain
from tests.export import operations
from tests.export.operations import ENTRY, INPUTS, described

asset = pytest.importorskip("export.asset", reason="coreai-core is not installed", exc_type=ImportError)
coreai = pytest.importorskip("export.coreai", reason="coreai-core is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("asset") / "each.aimodel"
    coreai.save(path, {"main": ENTRY, "other": Entry(INPUTS, lambda o, given: {"sum": o.add(given["x"], given["y"])})})
    return path


@pytest.fixture(scope="module")
def feeds():
    return operations.feeds()


def test_every_operation_is_the_one_that_was_described(made, feeds):
    given = {name: x.astype(np.float64) for name, x in feeds.items()}
    wanted = described(Plain(), given)
    with asset.opened(made) as run:
        found, other = run("main", feeds), run("other", feeds)
    assert found.keys() == wanted.keys()
    for name, of in wanted.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], of, rtol=1e-6, atol=3e-7 * np.abs(of).max(), err_msg=name)
    np.testing.assert_allclose(other["sum"], given["x"] + given["y"], rtol=1e-6)


def test_a_long_row_is_summed_to_its_end(tmp_path):
    """Added one after the other, 2^15 ones and small numbers between them lose a thousandth."""
    entry = Entry({"x": (1 << 15, 1)}, lambda o, given: {"sum": o.reduce("sum", given["x"])})
    coreai.save(tmp_path / "sum.aimodel", {"main": entry})
    x = np.random.default_rng(0).uniform(size=(1, 1 << 15, 1, 1)).astype(np.float32)
    with asset.opened(tmp_path / "sum.aimodel") as run:
        found = run("main", {"x": x})["sum"]
    assert abs(found.item() / x.astype(np.float64).sum() - 1) < 5e-7


AGAIN = """
from pathlib import Path
from export import asset, coreai
from tests.export.operations import ENTRY
coreai.save(Path("again.aimodel"), {"main": ENTRY})
print(asset.content(Path("again.aimodel")))
"""


def test_equal_assets_have_equal_digests_in_other_processes(tmp_path):
    coreai.save(tmp_path / "one.aimodel", {"main": ENTRY})
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", AGAIN], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert done.stdout.split()[-1] == asset.content(tmp_path / "one.aimodel")


def test_another_weight_is_another_digest(tmp_path):
    found = set()
    for value in (1.0, 1.0 + 2**-20):
        weight = np.full((40, 24), value)
        entry = Entry(INPUTS, lambda o, given, weight=weight: {"y": o.conv(given["x"], weight)})
        coreai.save(tmp_path / "one.aimodel", {"main": entry})
        found.add(asset.content(tmp_path / "one.aimodel"))
    assert len(found) == 2


def test_an_asset_with_another_byte_is_not_whole(made):
    assert asset.whole(made)
    data = bytearray((made / asset.PROGRAM).read_bytes())
    data[len(data) // 2] ^= 1
    (made / asset.PROGRAM).write_bytes(data)
    assert not asset.whole(made)
