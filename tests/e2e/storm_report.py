"""What a storm is told by: its counts, the memory of every life, and the log lines that tell of mistakes of ours."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.e2e.usage import Usage

KINDS = ("replica", "worker", "decode", "redis")
_MISTAKES = ("request_failed", "stream_failed", "loop_failed", "unexpectedly", "retention_failed", "never retrieved")
"""What a log line has in it that tells of an error which nobody had in mind."""
_MAX_GROWTH = {"api": 1.10, "worker": 1.10, "decode": 1.10}
"""The most that a part's peak may be in the storm's second half, in times of its first half's.

Each life of a process begins anew, so what grows from life to life is what the store or the disk hands it. How high one
rises depends on what comes together in it, which the highest of many lives of a half evens out.
"""
_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT")


@dataclass
class Report:
    """What happened in a storm."""

    seed: int
    num_clients: int
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    seconds: float = 0.0
    num_uploads: int = 0
    num_sessions: int = 0
    num_answers: int = 0
    num_repeated_questions: int = 0
    """Asked again because no reply came, and then found to have been accepted both times."""
    num_cut_streams: int = 0
    """Connections that broke in mid-answer."""
    num_takeovers: float = 0
    """As counted by the replicas that lived to the end."""
    num_lives: dict[str, int] = field(default_factory=dict)
    """Processes of each part that were seen."""
    peak_mb: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """The most resident memory that a process of each part had, of those begun in either half; in 10^6 bytes."""
    problems: list[str] = field(default_factory=list)


def mistakes(lines: Iterable[str]) -> list[str]:
    """The lines of a log that tell of a mistake of ours, each with the last line of its traceback."""
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
    """Each part's lives, by the half of the time in which they began; of each its highest memory, in bytes."""
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
    """Parts whose lives took more and more memory."""
    return [
        f"{part}: up to {report.peak_mb[part][0]} MB in the first half, {report.peak_mb[part][1]} in the second"
        for part, most in _MAX_GROWTH.items()
        if report.peak_mb[part][1] > most * report.peak_mb[part][0]
    ]
