"""Measures seconds and peak memory of each phase of a process; memory only on Linux."""

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
    """The measurements of one phase. Bytes are the maximum of samples every 20 ms; 0 on systems other than Linux."""

    name: str
    seconds: float
    resident: int
    """Bytes of all pages in memory, including those of mapped files."""
    private: int
    """Bytes of the pages without a file."""


class Phases:
    """Measures the phases of this process."""

    def __init__(self) -> None:
        self.finished: list[Phase] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure this block as one phase."""
        peaks = [resident_and_private()]
        done = threading.Event()

        def sample() -> None:
            while not done.wait(INTERVAL_S):
                peaks.append(resident_and_private())

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            done.set()
            sampler.join()
        peaks.append(resident_and_private())
        resident, private = (max(values) for values in zip(*peaks, strict=True))
        self.finished.append(Phase(name=name, seconds=seconds, resident=resident, private=private))


def resident_and_private() -> tuple[int, int]:
    """The bytes in memory now: of all pages, and of those without a file."""
    if not STATUS.is_file():
        return 0, 0
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))  # type: ignore[return-value]


def peak_resident() -> int:
    """The peak of the bytes that this process had in memory, including mapped files."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
