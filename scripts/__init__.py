"""The doors: the `agp` command, one verb a file."""

import agp as agp  # before any verb imports mlx.core: sorted imports would put MLX first
