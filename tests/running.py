"""Runs a real service for tests, with its workers, decode processes and Redis, on a free port of loopback."""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2
import redis

_READY = re.compile(r"Reeltalk is ready at (http://\S+?)/ ")
START_TIMEOUT = 120.0


@dataclass(frozen=True)
class Event:
    """One Server-Sent Event."""

    id: int | None
    name: str
    data: dict[str, Any]


def parse_events(lines: Iterator[str]) -> Iterator[Event]:
    """Parse the events of an SSE body as a browser does."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields.get("data"):
            number = fields.get("id")
            yield Event(None if number is None else int(number), fields["event"], json.loads(fields["data"]))
            fields = {}


@dataclass
class RunningService:
    """A running `reeltalk serve` and a client of it; `output` receives the lines that it prints."""

    process: subprocess.Popen[str]
    data_dir: Path
    url: str = ""
    output: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            self._lines.put(line)
        self._lines.put("")

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self.url:
            line = self._lines.get(timeout=max(0.1, deadline - time.monotonic()))
            assert line, f"the service ended while starting:\n{''.join(self.output)}"
            if match := _READY.search(line):
                self.url = match[1]

    @cached_property
    def client(self) -> httpx2.Client:
        limits = httpx2.Limits(max_connections=200)
        return httpx2.Client(base_url=self.url, timeout=60.0, limits=limits)

    def close(self) -> None:
        """Close the client and the pipe of the output."""
        if "client" in self.__dict__:
            self.client.close()
        self._reader.join(timeout=10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def children(self) -> dict[int, str]:
        """The process ids of the service's children, with their command lines."""
        found = {}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(pid)] = command
        return found

    def child(self, part: str) -> int:
        """The process id of the child whose command line contains `part`."""
        [pid] = [pid for pid, command in self.children().items() if part in command]
        return pid

    def metric(self, name: str) -> float:
        """The value of a metric, summed over its labels."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{")))

    def keys_about(self, *parts: str) -> list[str]:
        """The keys of the embedded Redis that contain one of `parts` in their name or among their members."""
        with self._store() as store:
            keys = [key for key in store.scan_iter() if isinstance(key, str)]
            members = {key: str(store.zrange(key, 0, -1)) for key in keys if store.type(key) == "zset"}
        return [key for key in keys if any(part in key or part in members.get(key, "") for part in parts)]

    def forget_features(self, sha256: str) -> int:
        """Delete the cached features of a video, as an eviction by Redis would."""
        with self._store() as store:
            keys = list(store.scan_iter(f"features:*:{sha256}"))
            return int(str(store.delete(*keys)))

    def flip_a_bit_of_features(self, sha256: str) -> None:
        """Flip one bit of the cached features of a video."""
        with self._store() as store:
            [key] = store.scan_iter(f"features:*:{sha256}")
            bit = 8 * 1000
            store.setbit(key, bit, 1 - int(str(store.getbit(key, bit))))

    def _store(self) -> "redis.Redis":
        return redis.Redis(unix_socket_path=str(self.data_dir / "redis" / "redis.sock"), decode_responses=True)

    # -- requests of a client

    def upload(self, path: Path) -> dict[str, Any]:
        """Upload a file and wait until it is ready."""
        with path.open("rb") as file:
            reply = self.client.post("/v1/videos", files={"file": (path.name, file, "video/mp4")})
        assert reply.status_code in {200, 201}, reply.text
        return self.wait_until_processed(reply.json()["id"])

    def wait_until_processed(self, video_id: str) -> dict[str, Any]:
        with self.client.stream("GET", f"/v1/videos/{video_id}/events") as reply:
            last = list(parse_events(reply.iter_lines()))[-1]
        assert last.name in {"ready", "failed"}
        video: dict[str, Any] = self.client.get(f"/v1/videos/{video_id}").json()
        return video

    def open_session(self, *video_ids: str, **fields: Any) -> str:
        reply = self.client.post("/v1/sessions", json={"video_ids": video_ids, **fields})
        assert reply.status_code == 201, reply.text
        session_id: str = reply.json()["id"]
        return session_id

    def ask(self, session_id: str, content: str, **fields: Any) -> dict[str, Any]:
        """Ask a question and wait for the complete message."""
        body = {"content": content, "max_tokens": 8, "temperature": 0, **fields}
        reply = self.client.post(f"/v1/sessions/{session_id}/messages", json=body)
        assert reply.status_code == 200, reply.text
        message: dict[str, Any] = reply.json()
        return message

    @contextmanager
    def stream(self, session_id: str, content: str, **fields: Any) -> Iterator[Iterator[Event]]:
        """Ask a question; yields the events of its answer while they are streamed."""
        body = {"content": content, "stream": True, "max_tokens": 8, "temperature": 0, **fields}
        with self.client.stream("POST", f"/v1/sessions/{session_id}/messages", json=body) as reply:
            assert reply.status_code == 200, reply.read()
            yield parse_events(reply.iter_lines())


@contextmanager
def started(data_dir: Path, *arguments: str, **environment: str) -> Iterator[RunningService]:
    """Start `reeltalk serve` without waiting until it is ready; stops it after the block, if necessary by SIGKILL."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "service.commands.main",
            "serve",
            "--port",
            "0",
            "--data-dir",
            str(data_dir),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "REELTALK_LEASE_SECONDS": "3", **environment},
    )
    service = RunningService(process, data_dir)
    try:
        yield service
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            service.close()


@contextmanager
def running(data_dir: Path, *arguments: str, **environment: str) -> Iterator[RunningService]:
    """Run a service that is ready to answer questions as long as the block."""
    with started(data_dir, *arguments, **environment) as service:
        service.wait_until_ready()
        yield service


def eventually(condition: Callable[[], bool], *, timeout: float = 20.0) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False
