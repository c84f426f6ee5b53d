"""A storm of kills: clients upload, ask and read while parts of a fleet are killed. Nothing may be lost.

`python -m tests.e2e.chaos --kills 20 --clients 16 --seed 1 --json storm.json`
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from service.commands.demo import SAMPLE
from tests.clips import variant
from tests.e2e.fleet import Fleet, running_fleet
from tests.e2e.patient import AnsweredQuestion, Client, Question
from tests.e2e.storm_report import KINDS, Report, growth, mistakes, peaks_by_half
from tests.e2e.usage import Usage, every, usage_of
from tests.running import eventually


def questions(num_clips: int, *, max_tokens: int) -> list[Question]:
    """Greedy and seeded questions about each clip."""
    kinds = [(0.0, 0), (1.0, 7), (1.0, 8)]
    return [
        Question(clip, "Tell me all.", temperature, seed, max_tokens)
        for clip in range(num_clips)
        for temperature, seed in kinds
    ]


class Storm:
    """Runs clients and kills at the same time, and records the results."""

    def __init__(self, fleet: Fleet, clips: Sequence[bytes], *, num_clients: int, seed: int, max_tokens: int) -> None:
        self._fleet = fleet
        self._clips = clips
        self._questions = questions(len(clips), max_tokens=max_tokens)
        self._rng = random.Random(seed)
        self._is_over = threading.Event()
        self._usage: list[Usage] = []
        self._uploads: dict[str, bytes] = {}
        self._answers: list[AnsweredQuestion] = []
        self._undisturbed: dict[Question, str] = {}
        self.report = Report(seed, num_clients)

    def run(self, kills: Sequence[str]) -> Report:
        """Record the answers without kills, then ask again while each of `kills` happens in turn."""
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
                answered = client.ask(client.open_session(video_id), question)
                self._answers.append(answered)
                if answered.text != self._undisturbed[question]:
                    self._blame(f"{answered.answer_id}: {answered.text!r} is not {self._undisturbed[question]!r}")
        finally:
            client.close()

    def _kill(self, kind: str) -> None:
        """Wait until every replica is ready again and has work."""
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
            part = {"worker": "service.workers", "decode": "service.decoding.child"}[kind]
            eventually(lambda: bool(replica.pids(part)))  # a used process ends before the next one starts
            with contextlib.suppress(ProcessLookupError, IndexError):  # the process has ended
                os.kill(self._rng.choice(replica.pids(part)), signal.SIGKILL)
        self.report.kills[kind] = self.report.kills.get(kind, 0) + 1
        print(f"{sum(self.report.kills.values())} {kind}: {len(self._answers)} answers so far", flush=True)

    def _check(self) -> None:
        """Check that everything acknowledged still exists unchanged."""
        client = Client(self._fleet)
        for video_id, content in self._uploads.items():
            video = client.get(f"/v1/videos/{video_id}")
            if video["sha256"] != hashlib.sha256(content).hexdigest() or client.content(video_id) != content:
                self._blame(f"{video_id} is not what was uploaded")
        for answered in self._answers:
            turns = client.get(f"/v1/sessions/{answered.session_id}/messages")["data"]
            self.report.num_repeated_questions += len(turns) > 2
            contents = [turn["content"] for turn in turns[: 2 if answered.num_posts > 1 else None]]
            if contents != [answered.question.content, answered.text]:
                self._blame(f"{answered.session_id} has turns {turns}")
            answer = client.get(f"/v1/answers/{answered.answer_id}")
            if answer["message"]["usage"]["completion_tokens"] != answered.question.max_tokens:
                self._blame(f"{answered.answer_id}: {answer['message']['usage']}")
        for replica in self._fleet.replicas:
            for mistake in mistakes(line for output in replica.outputs for line in output):
                self._blame(mistake)
        running = self._fleet.redis.client().smembers("answers:running")
        if running:
            self._blame(f"still running: {running}")
        client.close()
        self.report.num_uploads = len(self._uploads)
        self.report.num_sessions = len({answered.session_id for answered in self._answers})
        self.report.num_answers = len(self._answers)
        self.report.num_cut_streams = sum(answered.num_connections - 1 for answered in self._answers)
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


def schedule(num_kills: int, *, seed: int) -> Iterator[str]:
    """Each kind of kill several times, in random order."""
    kinds = [kind for kind in KINDS for _ in range(num_kills)]
    random.Random(seed).shuffle(kinds)
    yield from kinds


def main() -> None:
    """Run a storm and print its results."""
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
