"""A package of every operation there is, read back: made once for all that look at it."""

import pytest

from export import coreml, evaluate
from tests.export.operations import ENTRY


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "each.mlpackage"
    coreml.save(path, {"main": ENTRY}, "main")
    return evaluate.load(path)
