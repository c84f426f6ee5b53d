"""A soak: the visits of two days in ten minutes. The memory of every process, Redis and the disk must not grow.

`python -m tests.e2e.soak --minutes 10 --json soak.json`. Retention times are scaled down with the duration, and further
if they must end within the first third; then the second third is compared with the last one. The engine's cache is
small too, because its pages count only after the first write: with four sequences it is full within the first third.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx2

from tests.e2e.fleet import Fleet, running_fleet
from tests.e2e.level import Sample, Verdict, judge
from tests.e2e.usage import every, usage_of
from tests.e2e.visitor import Books, Visitor
from tests.running import eventually

HOURS = 48
SETTINGS = {
    "REELTALK_DISCONNECT_GRACE": "1",
    "REELTALK_FEATURE_TTL": "30",
    "REELTALK_IDEMPOTENCY_TTL": "60",
    "REELTALK_MAX_NUM_SEQS": "4",
    "REELTALK_MEDIA_TTL": "60",
    "REELTALK_RETENTION_INTERVAL": "2",
    "REELTALK_THREADS": "1",
    "REELTALK_UPLOAD_EXPIRY": "60",
}
_LOOK_EVERY = 2.0
_REWRITE_BYTES = 4 << 20  # of Redis' append-only file: 64 MiB by default


@dataclass
class Report:
    """The results of a soak."""

    minutes: float
    num_visitors: int
    visits: dict[str, int] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Soak:
    """Runs visitors, deletes old videos, and samples all resources."""

    def __init__(self, fleet: Fleet, *, num_visitors: int, seed: int) -> None:
        self._fleet = fleet
        self._rng = random.Random(seed)
        self._num_visitors = num_visitors
        self._books = Books()
        self._is_over = threading.Event()
        self.samples: list[tuple[float, Sample]] = []

    def run(self, seconds: float) -> Report:
        """Run visits for some seconds, delete everything, and check that nothing stays behind."""
        start = time.monotonic()
        before = self._permanent_keys()
        with ThreadPoolExecutor(self._num_visitors + 1) as threads, every(_LOOK_EVERY, self._look):
            going = [threads.submit(self._visit, self._rng.getrandbits(64)) for _ in range(self._num_visitors)]
            going.append(threads.submit(self._erase))
            time.sleep(seconds)
            self._is_over.set()
            for each in going:
                each.result()
        for _ in range(2):  # the grace period of disconnected clients has to end
            self._erase_all()
        report = Report(round((time.monotonic() - start) / 60, 1), self._num_visitors, dict(self._books.visits))
        report.problems = self._books.problems + self._leftovers(before)
        return report

    def _visit(self, seed: int) -> None:
        visitor = Visitor(self._fleet, self._books, seed=seed)
        while not self._is_over.is_set():
            visitor.visit()
        visitor.close()

    def _erase(self) -> None:
        while not self._is_over.wait(0.2):
            self._erase_each(self._books.due())

    def _erase_each(self, video_ids: Sequence[str]) -> None:
        with self._fleet.client() as http:
            for video_id in video_ids:
                status = http.delete(f"/v1/videos/{video_id}").status_code
                if status not in {200, 404}:  # a visitor may have deleted it before
                    self._books.problems.append(f"erasing {video_id}: {status}")

    def _erase_all(self) -> None:
        self._books.due(at_once=True)
        with self._fleet.client() as http:
            while videos := http.get("/v1/videos?limit=100").json()["data"]:
                self._erase_each([video["id"] for video in videos])

    # -- resources

    def _look(self, seconds: float) -> None:
        sample: dict[str, float] = {}
        ports = {replica.service.process.pid: "ab"[i] for i, replica in enumerate(self._fleet.replicas)}
        for usage in usage_of(self._fleet, seconds=seconds):
            if usage.part != "decode":  # a decode process handles one file; only the largest peak counts
                name = f"{usage.part} {ports.get(usage.pid) or ports.get(usage.parent, '')}".strip()
                sample |= {f"memory of {name}": usage.num_bytes, f"files of {name}": usage.num_files}
            else:
                key = "memory of decode"
                sample[key] = max(sample.get(key, 0.0), usage.peak_bytes)
        store = self._fleet.redis.client()
        for kind, number in collections.Counter(map(kind_of, store.scan_iter(count=1000))).items():
            sample[f"keys of {kind}"] = number
        sample["redis memory of all"] = store.info("memory")["used_memory"]
        for folder in (self._fleet.media, self._fleet.redis.folder):
            sizes = [size for _, size in files_in(folder)]
            sample |= {f"disk files of {folder.name}": len(sizes), f"disk bytes of {folder.name}": sum(sizes)}
        for replica, name in zip(self._fleet.replicas, "ab", strict=True):
            text = httpx2.get(f"http://127.0.0.1:{replica.port}/metrics", timeout=30).text
            sample[f"series of {name}"] = len(text.splitlines())
        self.samples.append((seconds, sample))

    def _permanent_keys(self) -> set[str]:
        store = self._fleet.redis.client()
        return {key for key in store.scan_iter(count=1000) if store.ttl(key) == -1}

    def _leftovers(self, before: set[str]) -> list[str]:
        """The keys and files that remain after everything was deleted and do not expire."""

        def found() -> list[str]:
            keys = [f"key {key}" for key in self._permanent_keys() - before]
            files = [f"file {path}" for path, _ in files_in(self._fleet.media) if "partial" not in path.parts]
            return keys + files

        with contextlib.suppress(AssertionError):
            eventually(lambda: not found(), timeout=20)
        return [f"left behind: {name}" for name in found()]


def kind_of(key: str) -> str:
    """The pattern of a key's name, with a star for every id."""
    return re.sub(r"[0-9a-f]{16,}", "*", key)


def files_in(folder: Path) -> list[tuple[Path, int]]:
    """All files below a folder and their sizes."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            with contextlib.suppress(FileNotFoundError):  # the file has just been removed
                found.append((path.relative_to(folder), path.stat().st_size))
    return found


@contextlib.contextmanager
def soaked_fleet(folder: Path) -> Iterator[Fleet]:
    """Run a fleet with short times and low limits."""
    with running_fleet(folder, **SETTINGS) as fleet:
        fleet.redis.client().config_set("auto-aof-rewrite-min-size", _REWRITE_BYTES)
        yield fleet


def main() -> None:
    """Run a soak and print its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--visitors", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, soaked_fleet(Path(folder)) as fleet:
        soak = Soak(fleet, num_visitors=arguments.visitors, seed=arguments.seed)
        report = soak.run(60 * arguments.minutes)
    report.verdicts = judge(soak.samples)
    report.problems += [f"{verdict.name} grows" for verdict in report.verdicts if not verdict.is_level]
    print(f"{sum(report.visits.values())} visits in {report.minutes} minutes, for {HOURS} hours: {report.visits}")
    for verdict in report.verdicts:
        mark = "" if verdict.is_level else "  grows"
        print(f"{verdict.name:58} {verdict.before:14,.0f} {verdict.after:14,.0f} {verdict.growth:+12,.0f}{mark}")
    for problem in report.problems:
        print(problem)
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(report) | {"samples": soak.samples}, indent=1))
    raise SystemExit(bool(report.problems))


if __name__ == "__main__":
    main()
