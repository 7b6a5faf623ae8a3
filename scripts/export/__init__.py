"""A run's frozen heads as packages for the Neural Engine (in the making)."""
