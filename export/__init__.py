"""The way out: frozen heads as Core ML and Core AI programs, with the proof that they are the same function."""

import agp as agp  # before mlx.core: sorted imports would put MLX first
