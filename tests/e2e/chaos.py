"""A storm: clients upload, ask and read in a fleet of which something is killed every few seconds. Nothing may be lost.

`python -m tests.e2e.chaos --kills 20 --clients 16 --seed 1 --json storm.json`
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from service.demo import SAMPLE
from tests.e2e.fleet import Fleet, running_fleet
from tests.e2e.usage import Usage, every, usage_of
from tests.running import Event, eventually, parse_events

KINDS = ("replica", "worker", "decode", "redis")
_PATIENCE = 240.0  # seconds a client tries the same thing again
_TRY_AGAIN = {502, 503, 504}
_MISTAKES = ("request_failed", "stream_failed", "loop_failed", "unexpectedly", "retention_failed", "never retrieved")
"""What a log line has in it that tells of an error which nobody had in mind."""
_MAX_GROWTH = {"api": 1.10, "worker": 1.10, "decode": 1.10}
"""The most that a part's peak may be in the storm's second half, in times of its first half's.

Each life of a process begins anew, so what grows from life to life is what the store or the disk hands it. How high one
rises depends on what comes together in it, which the highest of many lives of a half evens out.
"""
_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT")


@dataclass(frozen=True)
class Question:
    """What is asked of a clip, and how; the answer is always the same."""

    clip: int
    content: str
    temperature: float
    seed: int
    max_tokens: int

    def body(self) -> dict[str, Any]:
        fields = asdict(self)
        del fields["clip"]
        return {**fields, "stream": True, "ignore_eos": True}


@dataclass
class Told:
    """What one client was told and must find again."""

    question: Question
    session_id: str
    answer_id: str
    text: str
    num_connections: int
    num_posts: int


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


class Client:
    """Somebody who tries again, as a careful program does."""

    def __init__(self, fleet: Fleet) -> None:
        self._http = fleet.client()

    def close(self) -> None:
        self._http.close()

    def upload(self, content: bytes) -> str:
        def send() -> httpx2.Response:
            return self._http.post("/v1/videos", content=content, headers={"Content-Type": "video/mp4"})

        video_id: str = self._until_taken(send)["id"]
        return video_id

    def open_session(self, video_id: str) -> str:
        body = {"video_ids": [video_id]}
        session_id: str = self._until_taken(lambda: self._http.post("/v1/sessions", json=body))["id"]
        return session_id

    def get(self, path: str) -> dict[str, Any]:
        return self._until_taken(lambda: self._http.get(path))

    def content(self, video_id: str) -> bytes:
        reply = self._try(lambda: self._http.get(f"/v1/videos/{video_id}/content"))
        return reply.content if reply.status_code == 200 else b""

    def ask(self, session_id: str, question: Question) -> Told:
        """Ask and read to the end, over as many connections as it takes."""
        events, num_posts = self._begin(session_id, question)
        num_connections = 1
        answer_id = events[0].data["id"]
        deadline = time.monotonic() + _PATIENCE
        while events[-1].name not in {"done", "error"}:
            assert time.monotonic() < deadline, f"{answer_id} did not end"
            path, num_connections = f"/v1/answers/{answer_id}/events", num_connections + 1
            headers = {"Last-Event-ID": str(events[-1].id)}
            events += self._read(lambda: self._http.stream("GET", path, headers=headers))  # noqa: B023  called at once
        numbers = [event.id for event in events]
        assert numbers == list(range(1, len(events) + 1)), f"{answer_id}: events {numbers}"
        assert events[-1].name == "done", f"{answer_id} ended with {events[-1].data}"
        text = "".join(event.data["text"] for event in events if event.name == "delta")
        return Told(question, session_id, answer_id, text, num_connections, num_posts)

    def _begin(self, session_id: str, question: Question) -> tuple[list[Event], int]:
        """The first events of the answer, and how often it was asked for.

        Whether a question that got no reply was accepted shows in its session, where nothing else is asked.
        """
        path, key = f"/v1/sessions/{session_id}/messages", {"Idempotency-Key": session_id}
        deadline = time.monotonic() + _PATIENCE
        for num_posts in itertools.count(1):
            assert time.monotonic() < deadline, f"{session_id}: the question was never accepted"
            events = self._read(lambda: self._http.stream("POST", path, json=question.body(), headers=key))
            if events and num_posts == 1:
                return events, num_posts
            turns = self.get(path)["data"]
            if turns and not (events and events[0].data["id"] == turns[0]["answer_id"]):  # it was accepted before
                answer_path = f"/v1/answers/{turns[0]['answer_id']}/events"
                events = self._read(lambda: self._http.stream("GET", answer_path))  # noqa: B023  called at once
            if events:
                return events, num_posts
            time.sleep(0.3)
        raise AssertionError

    def _read(self, connect: Callable[[], Any]) -> list[Event]:
        """The events that come before the connection ends or breaks; those without a number are no part of the log."""
        events: list[Event] = []
        try:
            with connect() as reply:
                if reply.status_code == 200:
                    for event in parse_events(reply.iter_lines()):
                        if event.id is not None:
                            events.append(event)
                else:
                    assert reply.status_code in _TRY_AGAIN | {409}, f"{reply.status_code} {reply.read()!r}"
        except httpx2.HTTPError:
            pass
        if not events:
            time.sleep(0.2)
        return events

    def _until_taken(self, send: Callable[[], httpx2.Response]) -> dict[str, Any]:
        reply = self._try(send)
        assert reply.is_success, f"{reply.status_code} {reply.text}"
        document: dict[str, Any] = reply.json()
        return document

    def _try(self, send: Callable[[], httpx2.Response]) -> httpx2.Response:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                reply = send()
                if reply.status_code not in _TRY_AGAIN:
                    return reply
            except httpx2.HTTPError:
                reply = None
            assert time.monotonic() < deadline, f"refused again and again, at last with {reply and reply.text}"
            time.sleep(0.2)


def variant(clip: bytes, rng: random.Random) -> bytes:
    """The same clip in other bytes: a `free` box at its end, which no reader looks into."""
    payload = rng.randbytes(16)
    return clip + (8 + len(payload)).to_bytes(4, "big") + b"free" + payload


def questions(num_clips: int, *, max_tokens: int) -> list[Question]:
    """Greedy and seeded, of each clip."""
    kinds = [(0.0, 0), (1.0, 7), (1.0, 8)]
    return [
        Question(clip, "Tell me all.", temperature, seed, max_tokens)
        for clip in range(num_clips)
        for temperature, seed in kinds
    ]


class Storm:
    """Clients on one side, kills on the other, and the books."""

    def __init__(self, fleet: Fleet, clips: Sequence[bytes], *, num_clients: int, seed: int, max_tokens: int) -> None:
        self._fleet = fleet
        self._clips = clips
        self._questions = questions(len(clips), max_tokens=max_tokens)
        self._rng = random.Random(seed)
        self._is_over = threading.Event()
        self._usage: list[Usage] = []
        self._uploads: dict[str, bytes] = {}
        self._told: list[Told] = []
        self._undisturbed: dict[Question, str] = {}
        self.report = Report(seed, num_clients)

    def run(self, kills: Sequence[str]) -> Report:
        """Learn the answers in peace, then ask them again while each of `kills` happens in turn."""
        start = time.monotonic()
        self._learn()
        seeds = [self._rng.getrandbits(64) for _ in range(self.report.num_clients)]
        with every(1.0, self._look), ThreadPoolExecutor(self.report.num_clients) as threads:
            talking = [threads.submit(self._talk, random.Random(seed)) for seed in seeds]
            try:
                for kind in kills:
                    self._kill(kind)
                self._fleet.wait_until_ready()
            finally:
                self._is_over.set()
            for each in talking:
                if error := each.exception():
                    self._blame(f"{type(error).__name__}: {error}")
        self._check()
        self._sum_up_usage()
        self.report.seconds = round(time.monotonic() - start, 1)
        return self.report

    def _learn(self) -> None:
        client = Client(self._fleet)
        videos = [client.upload(clip) for clip in self._clips]
        for question in self._questions:
            self._undisturbed[question] = client.ask(client.open_session(videos[question.clip]), question).text
        client.close()

    def _talk(self, rng: random.Random) -> None:
        client = Client(self._fleet)
        try:
            while not self._is_over.is_set():
                question = rng.choice(self._questions)
                content = self._clips[question.clip]
                if rng.random() < 0.3:
                    content = variant(content, rng)
                video_id = client.upload(content)
                self._uploads[video_id] = content
                told = client.ask(client.open_session(video_id), question)
                self._told.append(told)
                if told.text != self._undisturbed[question]:
                    self._blame(f"{told.answer_id}: {told.text!r} is not {self._undisturbed[question]!r}")
        finally:
            client.close()

    def _kill(self, kind: str) -> None:
        """When all is well again: anything may be in any state, and everything has work."""
        self._fleet.wait_until_ready()
        time.sleep(self._rng.uniform(0, 2))
        replica = self._rng.choice(self._fleet.replicas)
        if kind == "redis":
            self._fleet.redis.restart()
        elif kind == "rollout":
            for each in self._fleet.replicas:
                each.stop()
                each.start()
                self._fleet.wait_until_ready()
        elif kind == "replica":
            replica.kill()
            time.sleep(self._rng.uniform(0, 3))
            replica.start()
        else:
            part = {"worker": "service.workers.worker", "decode": "service.decode_child"}[kind]
            eventually(lambda: bool(replica.pids(part)))  # one that was used is gone before the next one is there
            with contextlib.suppress(ProcessLookupError, IndexError):  # it was quicker
                os.kill(self._rng.choice(replica.pids(part)), signal.SIGKILL)
        self.report.kills[kind] = self.report.kills.get(kind, 0) + 1
        print(f"{sum(self.report.kills.values())} {kind}: {len(self._told)} answers so far", flush=True)

    def _check(self) -> None:
        """All that was acknowledged is there, and as it was told."""
        client = Client(self._fleet)
        for video_id, content in self._uploads.items():
            video = client.get(f"/v1/videos/{video_id}")
            if video["sha256"] != hashlib.sha256(content).hexdigest() or client.content(video_id) != content:
                self._blame(f"{video_id} is not what was uploaded")
        for told in self._told:
            turns = client.get(f"/v1/sessions/{told.session_id}/messages")["data"]
            self.report.num_repeated_questions += len(turns) > 2
            said = [turn["content"] for turn in turns[: 2 if told.num_posts > 1 else None]]
            if said != [told.question.content, told.text]:
                self._blame(f"{told.session_id} has turns {turns}")
            answer = client.get(f"/v1/answers/{told.answer_id}")
            if answer["message"]["usage"]["completion_tokens"] != told.question.max_tokens:
                self._blame(f"{told.answer_id}: {answer['message']['usage']}")
        for replica in self._fleet.replicas:
            for mistake in mistakes(line for output in replica.outputs for line in output):
                self._blame(mistake)
        running = self._fleet.redis.client().smembers("answers:running")
        if running:
            self._blame(f"still running: {running}")
        client.close()
        self.report.num_uploads = len(self._uploads)
        self.report.num_sessions = len({told.session_id for told in self._told})
        self.report.num_answers = len(self._told)
        self.report.num_cut_streams = sum(told.num_connections - 1 for told in self._told)
        self.report.num_takeovers = sum(r.metric("reeltalk_answer_takeovers_total") for r in self._fleet.replicas)

    def _look(self, seconds: float) -> None:
        self._usage += usage_of(self._fleet, seconds=seconds)

    def _sum_up_usage(self) -> None:
        for part, peaks in peaks_by_half(self._usage).items():
            self.report.num_lives[part] = sum(map(len, peaks))
            self.report.peak_mb[part] = tuple(round(max(half, default=0) / 1e6, 1) for half in peaks)

    def _blame(self, problem: str) -> None:
        self.report.problems.append(problem)
        print(problem, flush=True)


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


def schedule(num_kills: int, *, seed: int) -> Iterator[str]:
    """Each kind so many times, in an order of chance."""
    kinds = [kind for kind in KINDS for _ in range(num_kills)]
    random.Random(seed).shuffle(kinds)
    yield from kinds


def main() -> None:
    """Run a storm and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=200, help="of each answer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clip", type=Path, action="append", help="a video; default: the sample")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    clips = [path.read_bytes() for path in arguments.clip or [SAMPLE]]
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        running_fleet(Path(folder), REELTALK_DISCONNECT_GRACE="120", REELTALK_THREADS="1") as fleet,
    ):
        storm = Storm(fleet, clips, num_clients=arguments.clients, seed=arguments.seed, max_tokens=arguments.tokens)
        report = storm.run(list(schedule(arguments.kills, seed=arguments.seed)))
        report.problems += growth(report)
    for name, value in asdict(report).items():
        print(f"{name:16} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(report), indent=1))
    raise SystemExit(bool(report.problems))


if __name__ == "__main__":
    main()
