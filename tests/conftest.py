"""Every test starts from the same seed, at full float32 precision, without a network."""

import os

os.environ["MLX_ENABLE_TF32"] = "0"  # read once a process, when MLX first multiplies
os.environ["HF_HUB_OFFLINE"] = "1"

import agp as agp  # before mlx.core, which sorted imports would put first

# isort: split
import shutil
import signal
from tempfile import mkdtemp

import mlx.core as mx
import pytest

from tests.curricula import run

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background: what is started here must hear it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # workers inherit it
        os.environ[run.SHARED] = mkdtemp(prefix="agp-tests-")


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[run.SHARED], ignore_errors=True)


@pytest.hookimpl(trylast=True)  # of what is left
def pytest_collection_modifyitems(items):
    """The run that many read from is begun with the first test, and read from last: nobody waits for it."""
    shared = (run.smoke, run.exported)
    reads = [any(getattr(item.module, of.__name__, None) is of for of in shared) for item in items]
    readers, others = ([item for item, r in zip(items, reads, strict=True) if r is which] for which in (True, False))
    items[:] = readers[:1] + others + readers[1:]


@pytest.fixture(autouse=True)
def seed():
    mx.random.seed(0)
