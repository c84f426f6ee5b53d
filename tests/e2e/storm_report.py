"""The report of a storm: its counts, the memory of every process, and log lines that show internal errors."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.e2e.usage import Usage

KINDS = ("replica", "worker", "decode", "redis")
_MISTAKES = ("request_failed", "stream_failed", "loop_failed", "unexpectedly", "retention_failed", "never retrieved")
"""Texts in a log line that show an unexpected error."""
_MAX_GROWTH = {"api": 1.10, "worker": 1.10, "decode": 1.10}
"""The maximum ratio of a part's peak memory in the second half of a storm to that in the first half.

Each process starts with empty memory, so growth from process to process comes from data in Redis or on disk. The peak
of one process depends on concurrent work, so the maximum of many processes in each half is compared.
"""
_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT")


@dataclass
class Report:
    """The results of a storm."""

    seed: int
    num_clients: int
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    seconds: float = 0.0
    num_uploads: int = 0
    num_sessions: int = 0
    num_answers: int = 0
    num_repeated_questions: int = 0
    """Questions repeated after a lost response, both of which had been accepted."""
    num_cut_streams: int = 0
    """Connections that broke during an answer."""
    num_takeovers: float = 0
    """The count of the replicas that ran to the end."""
    num_lives: dict[str, int] = field(default_factory=dict)
    """The number of observed processes of each part."""
    peak_mb: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """The maximum resident memory of each part's processes by the half in which they started, in 10^6 bytes."""
    problems: list[str] = field(default_factory=list)


def mistakes(lines: Iterable[str]) -> list[str]:
    """The lines of a log that show an internal error, each with the last line of its traceback."""
    found: list[list[str]] = []
    is_traced = False
    for line in lines:
        if any(mark in line for mark in _MISTAKES):
            found.append([line])
            is_traced = True
        elif is_traced and not _LOG_LINE.match(line):
            found[-1][1:] = [line] if line.strip() else found[-1][1:]
        else:
            is_traced = False
    return ["".join(each) for each in found]


def peaks_by_half(usages: Sequence[Usage]) -> dict[str, tuple[list[int], list[int]]]:
    """The peak memory in bytes of each part's processes, by the half of the time in which they started."""
    began: dict[tuple[str, int], float] = {}
    peaks: dict[tuple[str, int], int] = {}
    for usage in usages:
        life = usage.part, usage.pid
        began.setdefault(life, usage.seconds)
        peaks[life] = max(peaks.get(life, 0), usage.peak_bytes)
    half = max(began.values(), default=0.0) / 2
    found: dict[str, tuple[list[int], list[int]]] = {}
    for life, peak in peaks.items():
        found.setdefault(life[0], ([], []))[began[life] > half].append(peak)
    return found


def growth(report: Report) -> list[str]:
    """The parts whose processes needed more memory in the second half."""
    return [
        f"{part}: up to {report.peak_mb[part][0]} MB in the first half, {report.peak_mb[part][1]} in the second"
        for part, most in _MAX_GROWTH.items()
        if report.peak_mb[part][1] > most * report.peak_mb[part][0]
    ]
