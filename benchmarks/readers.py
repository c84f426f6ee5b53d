"""`readers`: many readers follow a few long answers on one replica.

Every reader must get every event once and in order. Meanwhile the connections to Redis, the readiness check and a write
(opening a session) are watched. `make bench ARGS=readers` has 300 readers; `--readers N` changes that.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import httpx2
from redis import Redis
from rich.console import Console

from benchmarks.http import upload
from benchmarks.table import show
from service.commands.demo import SAMPLE, running_service
from service.store.redis_server import found_redis

NUM_READERS, NUM_ANSWERS, NUM_TOKENS = 300, 4, 400
MAX_CONNECTIONS = 20
_PROBE_INTERVAL = 0.1


@dataclass
class Findings:
    """What was seen while the answers were read."""

    num_whole: int = 0
    """Readers that got all events of their answer, in order, to the end."""
    num_events: int = 0
    max_connections: int = 0
    """Connections to Redis, the observer's own left out."""
    num_unready: int = 0
    readyz_seconds: list[float] = field(default_factory=list)
    write_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0


def main() -> int:
    """Measure and print; returns 1 if a reader missed an event or there were too many connections."""
    parser = argparse.ArgumentParser(description="Let many readers follow a few long answers.")
    parser.add_argument("--readers", type=int, default=NUM_READERS)
    num_readers = parser.parse_args().readers
    with tempfile.TemporaryDirectory(prefix="reeltalk-bench-") as folder:
        data_dir = Path(folder)
        with running_service(data_dir, Console(quiet=True)) as url, found_redis(data_dir) as redis_url:
            found = asyncio.run(read_along(url, redis_url, num_readers=num_readers))
    results = {
        "readers": num_readers,
        "whole": found.num_whole,
        "events": found.num_events,
        "seconds": round(found.seconds, 1),
        "max_redis_connections": found.max_connections,
        "unready": found.num_unready,
        "readyz_p50_ms": _milliseconds(statistics.median(found.readyz_seconds)),
        "readyz_max_ms": _milliseconds(max(found.readyz_seconds)),
        "write_p50_ms": _milliseconds(statistics.median(found.write_seconds)),
        "write_max_ms": _milliseconds(max(found.write_seconds)),
    }
    title = f"{NUM_ANSWERS} answers of {NUM_TOKENS} tokens, followed on one replica"
    show(title, ("measure", "value"), [(name, f"{value}") for name, value in results.items()])
    print(json.dumps({"benchmark": "readers", "machine": platform.machine(), **results}))
    return int(found.num_whole < num_readers or found.max_connections > MAX_CONNECTIONS or found.num_unready > 0)


async def read_along(url: str, redis_url: str, *, num_readers: int, num_tokens: int = NUM_TOKENS) -> Findings:
    """Ask `NUM_ANSWERS` questions, follow their answers with `num_readers` readers, and watch the service."""
    limits = httpx2.Limits(max_connections=num_readers + 2 * NUM_ANSWERS + 4)
    async with httpx2.AsyncClient(base_url=url, timeout=120.0, limits=limits) as client:
        video_id = await upload(client, SAMPLE.read_bytes())
        with _watching(url, redis_url, video_id) as found:
            session = {"video_ids": [video_id]}
            started = [_ask(client, await _open_session(client, session), num_tokens) for _ in range(NUM_ANSWERS)]
            ids = [await answer_id for answer_id, _ in started]
            start = time.perf_counter()
            events = await asyncio.gather(*(_follow(client, ids[n % NUM_ANSWERS]) for n in range(num_readers)))
            found.seconds = time.perf_counter() - start
            await asyncio.gather(*(asking for _, asking in started))
        texts = [await _text(client, answer_id) for answer_id in ids]
    for number, followed in enumerate(events):
        found.num_events += len(followed)
        found.num_whole += _is_whole(followed, texts[number % NUM_ANSWERS])
    return found


@contextlib.contextmanager
def _watching(url: str, redis_url: str, video_id: str) -> Iterator[Findings]:
    """Watch the service from a process of its own, which the readers' work does not delay."""
    found = Findings()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    watcher = context.Process(target=_watch, args=(url, redis_url, video_id, theirs))
    watcher.start()
    try:
        ours.recv()  # it has begun
        yield found
        ours.send("end")
        seen: Findings = ours.recv()
    finally:
        watcher.kill()
        watcher.join()
    found.max_connections, found.num_unready = seen.max_connections, seen.num_unready
    found.readyz_seconds, found.write_seconds = seen.readyz_seconds, seen.write_seconds


def _watch(url: str, redis_url: str, video_id: str, parent: Connection) -> None:
    found = Findings()
    redis = Redis.from_url(redis_url)
    with httpx2.Client(base_url=url, timeout=60.0) as client:
        parent.send("begun")
        while not parent.poll(_PROBE_INTERVAL):
            start = time.perf_counter()
            found.num_unready += client.get("/readyz").status_code != 200
            found.readyz_seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
            client.post("/v1/sessions", json={"video_ids": [video_id]}).raise_for_status()
            found.write_seconds.append(time.perf_counter() - start)
            connections = redis.info("clients")["connected_clients"] - 1  # without this one
            found.max_connections = max(found.max_connections, connections)
    parent.send(found)


async def _open_session(client: httpx2.AsyncClient, session: dict[str, list[str]]) -> str:
    session_id: str = (await client.post("/v1/sessions", json=session)).raise_for_status().json()["id"]
    return session_id


def _ask(
    client: httpx2.AsyncClient, session_id: str, num_tokens: int
) -> tuple["asyncio.Future[str]", "asyncio.Task[None]"]:
    """Ask a question; returns its answer's id, as soon as it is known, and the task that reads the answer."""
    answer_id: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read() -> None:
        body = {
            "content": "What happens?", "stream": True, "max_tokens": num_tokens, "ignore_eos": True, "temperature": 0,
        }  # fmt: skip
        async with client.stream("POST", f"/v1/sessions/{session_id}/messages", json=body) as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: ") and not answer_id.done():
                    answer_id.set_result(json.loads(line[6:])["id"])

    return answer_id, asyncio.create_task(read())


async def _follow(client: httpx2.AsyncClient, answer_id: str) -> list[tuple[int, str, str]]:
    """Read an answer's events to the end: number, name, and text of deltas."""
    events: list[tuple[int, str, str]] = []
    number, name = 0, ""
    async with client.stream("GET", f"/v1/answers/{answer_id}/events") as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if line.startswith("id: "):
                number = int(line[4:])
            elif line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                events.append((number, name, json.loads(line[6:]).get("text", "")))
    return events


async def _text(client: httpx2.AsyncClient, answer_id: str) -> str:
    record = (await client.get(f"/v1/answers/{answer_id}")).raise_for_status().json()
    text: str = record["message"]["content"]
    return text


def _is_whole(events: list[tuple[int, str, str]], text: str) -> bool:
    numbers = [number for number, _, _ in events]
    return (
        numbers == list(range(1, len(events) + 1))
        and events[-1][1] == "done"
        and "".join(delta for _, name, delta in events if name == "delta") == text
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
