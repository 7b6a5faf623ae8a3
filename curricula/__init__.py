"""What is trained when, on what, and what is learned from it."""

import agp as agp  # before mlx.core: sorted imports would put MLX first
