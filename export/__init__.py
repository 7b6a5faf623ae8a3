"""The way out: frozen heads as Core ML and Core AI programs, with the proof that they are the same function."""

import logging

import agp as agp  # before mlx.core: sorted imports would put MLX first

logging.getLogger("coremltools").addFilter(lambda said: said.levelno >= logging.ERROR)  # off a Mac much is missing
