"""A soak: two days' worth of visits in ten minutes. What every process, Redis and the disk hold must stay level.

`python -m tests.e2e.soak --minutes 10 --json soak.json`. How long things are kept is scaled down with the time, and
further where it must be over within the first third; the second third is then compared with the last one. So is the
engine's cache, whose pages are taken when they are first written to: with four sequences it is full by then.
"""

import argparse
import base64
import collections
import contextlib
import heapq
import itertools
import json
import os
import random
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from service.demo import SAMPLE
from tests.e2e.chaos import variant
from tests.e2e.fleet import Fleet, running_fleet
from tests.e2e.usage import every, usage_of
from tests.running import eventually, parse_events

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
_KEPT_FOR = 15.0, 90.0  # seconds after which a visitor erases a video: most, and some, which then have no file any more
_LOOK_EVERY = 2.0
_REWRITE_BYTES = 4 << 20  # of Redis' append-only file: 64 MiB by default
_TUS = {"Tus-Resumable": "1.0.0"}
_PIECE = _TUS | {"Content-Type": "application/offset+octet-stream"}
_BUSY = {423, 429, 503}  # 423: a replica that was starved for longer than its lease

Sample = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Bound:
    """How much a series may grow in a third of the time, which stands for 16 hours."""

    share: float
    """Of its level in the second third."""
    at_least: float
    """However low that level is."""

    def allows(self, level: float, growth: float) -> bool:
        return growth <= max(self.share * level, self.at_least)


MB = 1e6
_BOUNDS = {
    "memory of worker": Bound(0.06, 3 * MB),
    "memory": Bound(0.02, 3 * MB),
    "files": Bound(0.10, 10),
    "keys": Bound(0.15, 8),
    "redis memory": Bound(0.10, 1 * MB),
    "disk bytes": Bound(0.15, 2 * MB),
    "disk files": Bound(0.15, 8),
    "series": Bound(0.02, 2),
}
"""By the first words of a series' name.

A worker rises for long and ever more slowly, in part because oneDNN keeps what it prepared for up to 1,024 shapes of
products, and an engine has steps of many shapes. Open files: a replica keeps as many connections to Redis as it ever
needed at once, and that creeps up with luck. Keys and files on disk scatter with the visits that are going on; a thing
left by each visit would double these numbers.
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One series, its level in the second third and in the last, and by how much it grew from one to the other."""

    name: str
    before: float
    after: float
    growth: float
    is_level: bool


def judge(samples: Sequence[tuple[float, Sample]]) -> list[Verdict]:
    """Compare the last two thirds of the time, series by series.

    Growth is the median of the slopes between all samples, times a third: no single sample moves it.
    """
    third = samples[-1][0] / 3
    verdicts = []
    for name in sorted({name for _, sample in samples for name in sample}):
        points = [(seconds, sample.get(name, 0.0)) for seconds, sample in samples if seconds >= third]
        before = statistics.median(value for seconds, value in points if seconds < 2 * third)
        after = statistics.median(value for seconds, value in points if seconds >= 2 * third)
        growth = third * _slope(points)
        bound = next(bound for start, bound in _BOUNDS.items() if f"{name} ".startswith(start + " "))
        verdicts.append(Verdict(name, before, after, growth, bound.allows(before, growth)))
    return verdicts


def _slope(points: Sequence[tuple[float, float]]) -> float:
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2))


class Books:
    """What visitors did, what they are still to erase, and what went wrong."""

    def __init__(self) -> None:
        self.visits: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self._due: list[tuple[float, str]] = []
        self._lock = threading.Lock()

    def count(self, kind: str) -> None:
        with self._lock:
            self.visits[kind] += 1

    def erase_later(self, video_id: str, *, seconds: float) -> None:
        with self._lock:
            heapq.heappush(self._due, (time.monotonic() + seconds, video_id))

    def due(self, *, at_once: bool = False) -> list[str]:
        """Videos whose time has come, or all."""
        found = []
        with self._lock:
            while self._due and (at_once or self._due[0][0] <= time.monotonic()):
                found.append(heapq.heappop(self._due)[1])
        return found


class TurnedAway(Exception):
    """The service was busy: not this visit, then."""


class Visitor:
    """Somebody who uses the service in every way it has, the wrong ones too."""

    def __init__(self, fleet: Fleet, books: Books, *, seed: int) -> None:
        self._http = fleet.client()
        self._books = books
        self._rng = random.Random(seed)
        self._ways: dict[Callable[[], None], int] = {
            self.talk: 5,
            self.ask_twice: 2,
            self.cancel: 2,
            self.leave: 2,
            self.erase_in_mid_answer: 1,
            self.complete: 3,
            self.leave_a_completion: 1,
            self.upload_in_pieces: 2,
            self.leave_an_upload: 2,
            self.break_off_an_upload: 2,
            self.upload_rubbish: 2,
            self.upload_a_torn_file: 2,
            self.ask_for_what_is_not_there: 2,
        }

    def close(self) -> None:
        self._http.close()

    def visit(self) -> None:
        """One visit of some kind."""
        [way] = self._rng.choices(list(self._ways), list(self._ways.values()))
        try:
            way()
        except TurnedAway:
            self._books.count("turned away")
        except Exception as error:  # noqa: BLE001  whatever it is, it is no good
            self._books.problems.append(f"{way.__name__}: {type(error).__name__}: {error}")
        else:
            self._books.count(way.__name__)

    # -- ways to use it

    def talk(self) -> None:
        session_id = self._session()
        for content in ("What is it?", "And what else?"):
            with self._ask(session_id, content) as events:
                assert list(events)[-1].name == "done"
        if self._rng.random() < 0.3:
            self._expect(self._http.delete(f"/v1/sessions/{session_id}"), 200)

    def ask_twice(self) -> None:
        session_id, key = self._session(), self._rng.randbytes(8).hex()
        body = {"content": "What is it?", "max_tokens": 8}
        ids = set()
        for _ in range(2):
            headers = {"Idempotency-Key": key}
            reply = self._http.post(f"/v1/sessions/{session_id}/messages", json=body, headers=headers)
            ids.add(self._expect(reply, 200).json()["answer_id"])
        assert len(ids) == 1

    def cancel(self) -> None:
        with self._ask(self._session(), "Tell me all.", max_tokens=1500) as events:
            answer_id = next(events).data["id"]
            self._expect(self._http.post(f"/v1/answers/{answer_id}/cancel"), 200, 202)
            assert list(events)[-1].data["finish_reason"] == "abort"

    def leave(self) -> None:
        with self._ask(self._session(), "Tell me all.", max_tokens=300) as events:
            next(events)

    def erase_in_mid_answer(self) -> None:
        video_id = self._video()
        with self._ask(self._session_about(video_id), "Tell me all.", max_tokens=300) as events:
            next(events)
            self._expect(self._http.delete(f"/v1/videos/{video_id}"), 200)
            assert list(events)[-1].name in {"error", "done"}

    def complete(self) -> None:
        reply = self._http.post("/v1/chat/completions", json=self._completion(max_tokens=12))
        assert self._expect(reply, 200).json()["choices"]

    def leave_a_completion(self) -> None:
        body = self._completion(max_tokens=300) | {"stream": True, "ignore_eos": True}
        with self._http.stream("POST", "/v1/chat/completions", json=body) as reply:
            self._expect(reply, 200)
            next(reply.iter_lines())

    def upload_in_pieces(self) -> None:
        content = self._content()
        url, half = self._begin_upload(content), len(content) // 2
        for start, piece in ((0, content[:half]), (half, content[half:])):
            headers = _PIECE | {"Upload-Offset": str(start)}
            self._expect(self._http.patch(url, content=piece, headers=headers), 204)
        upload = self._expect(self._http.head(url, headers=_TUS), 200)
        self._keep(upload.headers["Reeltalk-Video-Id"])

    def leave_an_upload(self) -> None:
        content = self._content()
        url = self._begin_upload(content)
        headers = _PIECE | {"Upload-Offset": "0"}
        self._expect(self._http.patch(url, content=content[: len(content) // 2], headers=headers), 204)
        if self._rng.random() < 0.3:
            self._expect(self._http.delete(url, headers=_TUS), 204)

    def break_off_an_upload(self) -> None:
        def half() -> Iterator[bytes]:
            yield self._rng.randbytes(20_000)
            raise ConnectionAbortedError

        with contextlib.suppress(ConnectionAbortedError):
            self._http.post("/v1/videos", content=half(), headers={"Content-Type": "video/mp4"})

    def upload_rubbish(self) -> None:
        reply = self._http.post("/v1/videos", files={"file": ("a.mp4", self._rng.randbytes(5000), "video/mp4")})
        self._expect(reply, 415)

    def upload_a_torn_file(self) -> None:
        """Its index is whole, and most of its pictures are not."""
        content = bytearray(self._content())
        middle = len(content) // 2
        content[middle : middle + 4000] = self._rng.randbytes(4000)
        reply = self._http.post("/v1/videos", content=bytes(content), headers={"Content-Type": "video/mp4"})
        if self._expect(reply, 201, 422).status_code == 201:
            self._keep(reply.json()["id"])

    def ask_for_what_is_not_there(self) -> None:
        nobody = self._rng.randbytes(16).hex()
        for path in (f"/v1/videos/vid_{nobody}", f"/v1/sessions/ses_{nobody}/messages", f"/v1/{nobody}", f"/{nobody}"):
            self._expect(self._http.get(path), 404)
        self._expect(self._http.post("/v1/sessions", json={"video_ids": nobody}), 422)

    # -- steps

    def _content(self) -> bytes:
        return variant(SAMPLE.read_bytes(), self._rng)

    def _video(self) -> str:
        reply = self._http.post("/v1/videos", content=self._content(), headers={"Content-Type": "video/mp4"})
        video_id: str = self._expect(reply, 201).json()["id"]
        self._keep(video_id)
        return video_id

    def _keep(self, video_id: str) -> None:
        self._books.erase_later(video_id, seconds=_KEPT_FOR[self._rng.random() < 0.1])

    def _session(self) -> str:
        return self._session_about(self._video())

    def _session_about(self, video_id: str) -> str:
        reply = self._http.post("/v1/sessions", json={"video_ids": [video_id]})
        session_id: str = self._expect(reply, 201).json()["id"]
        return session_id

    @contextlib.contextmanager
    def _ask(self, session_id: str, content: str, *, max_tokens: int = 16) -> Iterator[Iterator[Any]]:
        body = {"content": content, "stream": True, "max_tokens": max_tokens, "ignore_eos": True}
        with self._http.stream("POST", f"/v1/sessions/{session_id}/messages", json=body) as reply:
            self._expect(reply, 200)
            yield parse_events(reply.iter_lines())

    def _completion(self, *, max_tokens: int) -> dict[str, Any]:
        if self._rng.random() < 0.5:
            url = self._video()
        else:
            url = "data:video/mp4;base64," + base64.b64encode(SAMPLE.read_bytes()).decode()
        content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
        return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}

    def _begin_upload(self, content: bytes) -> str:
        reply = self._http.post("/v1/uploads", headers=_TUS | {"Upload-Length": str(len(content))})
        return self._expect(reply, 201).headers["Location"]

    def _expect(self, reply: httpx2.Response, *statuses: int) -> httpx2.Response:
        if reply.status_code in _BUSY:
            raise TurnedAway
        assert reply.status_code in statuses, f"{reply.request.method} {reply.url.path}: {reply.status_code}"
        return reply


@dataclass
class Report:
    """What happened in a soak."""

    minutes: float
    num_visitors: int
    visits: dict[str, int] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Soak:
    """Visitors, those who erase, and the looks at everything."""

    def __init__(self, fleet: Fleet, *, num_visitors: int, seed: int) -> None:
        self._fleet = fleet
        self._rng = random.Random(seed)
        self._num_visitors = num_visitors
        self._books = Books()
        self._is_over = threading.Event()
        self.samples: list[tuple[float, Sample]] = []

    def run(self, seconds: float) -> Report:
        """Visits for so long; then everything is erased, and nothing may be left that does not go by itself."""
        start = time.monotonic()
        before = self._permanent_keys()
        with ThreadPoolExecutor(self._num_visitors + 1) as threads, every(_LOOK_EVERY, self._look):
            going = [threads.submit(self._visit, self._rng.getrandbits(64)) for _ in range(self._num_visitors)]
            going.append(threads.submit(self._erase))
            time.sleep(seconds)
            self._is_over.set()
            for each in going:
                each.result()
        for _ in range(2):  # whoever left was still being waited for
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
                if status not in {200, 404}:  # a visitor may have been first
                    self._books.problems.append(f"erasing {video_id}: {status}")

    def _erase_all(self) -> None:
        self._books.due(at_once=True)
        with self._fleet.client() as http:
            while videos := http.get("/v1/videos?limit=100").json()["data"]:
                self._erase_each([video["id"] for video in videos])

    # -- what is held

    def _look(self, seconds: float) -> None:
        sample: dict[str, float] = {}
        ports = {replica.service.process.pid: "ab"[i] for i, replica in enumerate(self._fleet.replicas)}
        for usage in usage_of(self._fleet, seconds=seconds):
            if usage.part != "decode":  # there for one file; the peak of the largest that was seen is looked at
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
        """What is there, though everything was erased, and would stay."""

        def found() -> list[str]:
            keys = [f"key {key}" for key in self._permanent_keys() - before]
            files = [f"file {path}" for path, _ in files_in(self._fleet.media) if "partial" not in path.parts]
            return keys + files

        with contextlib.suppress(AssertionError):
            eventually(lambda: not found(), timeout=20)
        return [f"left behind: {name}" for name in found()]


def kind_of(key: str) -> str:
    """A key's name with a star for everything that is one thing's own."""
    return re.sub(r"[0-9a-f]{16,}", "*", key)


def files_in(folder: Path) -> list[tuple[Path, int]]:
    """All files below a folder, with their sizes."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            with contextlib.suppress(FileNotFoundError):  # it has just gone
                found.append((path.relative_to(folder), path.stat().st_size))
    return found


@contextlib.contextmanager
def soaked_fleet(folder: Path) -> Iterator[Fleet]:
    """A fleet with everything scaled down."""
    with running_fleet(folder, **SETTINGS) as fleet:
        fleet.redis.client().config_set("auto-aof-rewrite-min-size", _REWRITE_BYTES)
        yield fleet


def main() -> None:
    """Run a soak and print what came of it."""
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
