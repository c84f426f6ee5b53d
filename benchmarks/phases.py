"""Seconds and peak memory of each phase of a process; memory on Linux alone."""

import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")
INTERVAL_S = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """What one phase took. Bytes are the highest seen in a look every 20 ms, 0 where the system shows none."""

    name: str
    seconds: float
    resident: int
    """All pages in memory, those of mapped files included."""
    private: int
    """Pages that no file backs."""


class Phases:
    """Watches this process, phase after phase."""

    def __init__(self) -> None:
        self.finished: list[Phase] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """One phase; it counts until the block ends."""
        peaks = [resident_and_private()]
        done = threading.Event()

        def look() -> None:
            while not done.wait(INTERVAL_S):
                peaks.append(resident_and_private())

        watch = threading.Thread(target=look, daemon=True)
        watch.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            done.set()
            watch.join()
        peaks.append(resident_and_private())
        resident, private = (max(values) for values in zip(*peaks, strict=True))
        self.finished.append(Phase(name=name, seconds=seconds, resident=resident, private=private))


def resident_and_private() -> tuple[int, int]:
    """Bytes in memory now: all, and those that no file backs."""
    if not STATUS.is_file():
        return 0, 0
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))  # type: ignore[return-value]


def peak_resident() -> int:
    """Bytes: the most that this process ever had in memory, pages of mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
