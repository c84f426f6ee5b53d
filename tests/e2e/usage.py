"""Samples the memory, peak memory and open files of a fleet's processes."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.e2e.fleet import Fleet

PARTS = {"service.workers": "worker", "service.decoding.child": "decode"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """A sample of one process; bytes are resident, including shared pages, and the peak is since its start."""

    seconds: float
    part: str
    pid: int
    parent: int
    num_bytes: int
    peak_bytes: int
    num_files: int


def usage_of(fleet: Fleet, *, seconds: float) -> list[Usage]:
    """Sample every process of the fleet; one that ends meanwhile is left out."""
    found = [_usage(fleet.redis.process.pid, "redis", seconds=seconds)]
    for replica in fleet.replicas:
        api = replica.service.process.pid
        found.append(_usage(api, "api", seconds=seconds))
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(api).children(recursive=True)
            found += [_usage(child.pid, None, seconds=seconds) for child in children]
    return [usage for usage in found if usage is not None]


def _usage(pid: int, part: str | None, *, seconds: float) -> Usage | None:
    """Sample a process; its command line determines its part. Directly after a fork it is still the parent's."""
    with contextlib.suppress(psutil.Error, OSError, StopIteration):
        process = psutil.Process(pid)
        command = " ".join(process.cmdline())
        return Usage(
            seconds=seconds,
            part=part or next(part for mark, part in PARTS.items() if mark in command),
            pid=pid,
            parent=process.ppid(),
            num_bytes=process.memory_info().rss,
            peak_bytes=_peak_bytes(pid),
            num_files=process.num_fds(),
        )
    return None


def _peak_bytes(pid: int) -> int:
    """The peak memory recorded by the kernel, which includes peaks between two samples."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@contextlib.contextmanager
def every(seconds: float, look: Callable[[float], None]) -> Iterator[None]:
    """Call `look` at an interval as long as the block lasts, with the seconds since its start."""
    start, is_over = time.monotonic(), threading.Event()

    def watch() -> None:
        while not is_over.wait(seconds):
            look(time.monotonic() - start)

    with ThreadPoolExecutor(1) as thread:
        watching = thread.submit(watch)
        try:
            yield
        finally:
            is_over.set()
            watching.result()
