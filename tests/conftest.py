"""Every test starts from the same seed, at full float32 precision, without a network."""

import os

os.environ["MLX_ENABLE_TF32"] = "0"  # read once a process, when MLX first multiplies
os.environ["HF_HUB_OFFLINE"] = "1"

import agp as agp  # before mlx.core, which sorted imports would put first

# isort: split
import mlx.core as mx
import pytest


@pytest.fixture(autouse=True)
def seed():
    mx.random.seed(0)
