"""How much memory this machine has, and how much of it a model may take."""

import os
from pathlib import Path

import mlx.core as mx


def memory() -> tuple[int, int | None]:
    """Bytes in all and, on Linux, bytes free, within this container's limit where there is one."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if not meminfo.exists():
        return total, None
    free = int(meminfo.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        used = int(limit.with_name("memory.current").read_text())
        total, free = min(total, int(text)), min(free, int(text) - used)
    return total, free


def available() -> int:
    """Bytes a model may take: Metal's working set, else what is free."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    total, free = memory()
    return total if free is None else free
