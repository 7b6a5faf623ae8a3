"""The learned parts: each in one file, with its Config, its Head and its loss."""

import agp as agp  # before mlx.core: sorted imports would put MLX first
