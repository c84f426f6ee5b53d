"""How much main memory is free, for the machine and for the container. No torch."""

import math
import os
from pathlib import Path


def free_main_memory() -> float:
    """Return the bytes of main memory that this process may still take."""
    return min(_available(), _left_to_container())


def _available() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:"))


def _left_to_container() -> float:
    group = Path("/sys/fs/cgroup")
    try:
        return float((group / "memory.max").read_text()) - float((group / "memory.current").read_text())
    except (OSError, ValueError):
        return math.inf  # no limit, or none that can be read
