"""At ten times its capacity the service refuses at once or answers in time, with constant memory."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from tests.running import RunningService, parse_events, running

MAX_NUM_SEQS = 4
MAX_QUEUED = 8
NUM_TOKENS = 64
PATIENCE = 30.0


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with a short queue."""
    bounds = {"REELTALK_MAX_NUM_SEQS": str(MAX_NUM_SEQS), "REELTALK_MAX_QUEUED_SEQUENCES": str(MAX_QUEUED)}
    with running(tmp_path_factory.mktemp("narrow"), REELTALK_LOG_LEVEL="warning", **bounds) as service:
        yield service


@dataclass
class Seen:
    """The observations of clients and of a monitor."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """The seconds from the question to the end of each accepted answer."""
    errors: Counter[str] = field(default_factory=Counter)
    without_advice: int = 0
    refused_late: int = 0
    advice: set[int] = field(default_factory=set)
    queued: list[int] = field(default_factory=list)
    health_seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    """The memory of the API process in bytes."""


async def ask(client: httpx2.AsyncClient, session_id: str, seen: Seen, *, timeout: float | None) -> bool:
    """Ask one question and read its stream; returns whether it was accepted."""
    body = {"content": "Tell me all.", "stream": True, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    body |= {} if timeout is None else {"timeout": timeout}
    start = time.monotonic()
    async with client.stream("POST", f"/v1/sessions/{session_id}/messages", json=body) as reply:
        seen.statuses[reply.status_code] += 1
        text = (await reply.aread()).decode()
    if reply.status_code != 200:
        seen.without_advice += not reply.headers.get("Retry-After", "").isdecimal()
        seen.advice.add(int(reply.headers.get("Retry-After", 0)))
        return False
    last = list(parse_events(iter([*text.splitlines(), ""])))[-1]
    if last.name == "error":
        seen.errors[last.data["error"]["code"]] += 1
    seen.seconds.append(time.monotonic() - start)
    return True


async def look_on(service: RunningService, seen: Seen) -> None:
    """Record health, queue length and memory until cancelled."""
    async with httpx2.AsyncClient(base_url=service.url, timeout=PATIENCE) as client:
        while True:
            start = time.monotonic()
            assert (await client.get("/healthz")).status_code == 200
            seen.health_seconds.append(time.monotonic() - start)
            metrics = (await client.get("/metrics")).text
            [line] = [line for line in metrics.splitlines() if line.startswith("reeltalk_num_queued_sequences ")]
            seen.queued.append(int(float(line.split()[1])))
            seen.memory.append(memory(service))
            await asyncio.sleep(0.1)


def memory(service: RunningService) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


async def capacity(service: RunningService, sessions: Iterator[str], *, seconds: float) -> float:
    """Measure the answers per second with as many clients as can be served concurrently."""
    seen, end = Seen(), time.monotonic() + seconds
    async with httpx2.AsyncClient(base_url=service.url, timeout=PATIENCE) as client:

        async def ask_on() -> None:
            while time.monotonic() < end:
                await ask(client, next(sessions), seen, timeout=None)

        start = time.monotonic()
        await asyncio.gather(*(ask_on() for _ in range(MAX_NUM_SEQS)))
    assert seen.statuses.keys() == {200}
    return len(seen.seconds) / (time.monotonic() - start)


async def storm(
    service: RunningService, sessions: Iterator[str], *, rate: float, seconds: float, timeout: float
) -> Seen:
    """Ask at a constant rate, independently of the responses; returns when all have been answered or refused."""
    seen = Seen()
    free: list[str] = []  # sessions of refused questions, which can be used again
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=service.url, timeout=PATIENCE, limits=limits) as client:

        async def one() -> None:
            session_id = free.pop() if free else next(sessions)
            if not await ask(client, session_id, seen, timeout=timeout):
                free.append(session_id)

        onlooker = asyncio.create_task(look_on(service, seen))
        start = time.monotonic()
        async with asyncio.TaskGroup() as clients:
            for number in itertools.count():
                if number / rate > seconds:
                    break
                await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
                clients.create_task(one())
        onlooker.cancel()
        await asyncio.gather(onlooker, return_exceptions=True)
    return seen


def new_sessions(service: RunningService, video_id: str) -> Iterator[str]:
    while True:
        yield service.open_session(video_id)


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
def test_ten_times_the_load_is_refused_or_answered_in_time(narrow: RunningService, drawn: Path, seconds: int) -> None:
    sessions = new_sessions(narrow, narrow.upload(drawn)["id"])
    possible = asyncio.run(capacity(narrow, sessions, seconds=3))
    ready = [next(sessions) for _ in range(int(possible * seconds) + 400)]
    # three times the time under full load, because the clients use the same processors
    timeout = 3 * (MAX_QUEUED + MAX_NUM_SEQS) / possible
    start = memory(narrow)
    seen = asyncio.run(storm(narrow, iter(ready), rate=10 * possible, seconds=seconds, timeout=timeout))

    accepted, refused = seen.statuses[200], seen.statuses[503]
    waits, health = sorted(seen.seconds), sorted(seen.health_seconds)
    print(
        f"\n{seconds} s at {10 * possible:.0f} questions a second, ten times {possible:.1f}: {accepted} answered, "
        f"{refused} refused, advice {min(seen.advice)} to {max(seen.advice)} s; "
        f"queue at most {max(seen.queued)} of {MAX_QUEUED}; answered within {waits[len(waits) // 2]:.2f} s (median), "
        f"{waits[-1]:.2f} s (longest), {timeout:.2f} s allowed; /healthz {len(health)} times, median "
        f"{health[len(health) // 2] * 1000:.0f} ms, longest {health[-1] * 1000:.0f} ms; memory from "
        f"{start / 2**20:.1f} to {seen.memory[-1] / 2**20:.1f} MiB, at most {max(seen.memory) / 2**20:.1f}"
    )
    assert seen.statuses.keys() == {200, 503}
    assert accepted <= MAX_QUEUED + MAX_NUM_SEQS + 2 * possible * seconds, "more were let in than can be served"
    assert refused > 2 * accepted
    assert accepted > possible * seconds / 4, "it must go on working while it refuses"
    assert seen.without_advice == 0
    assert max(seen.queued) <= MAX_QUEUED
    assert max(seen.queued) >= MAX_QUEUED - 1, "the storm never filled the queue"
    assert not seen.errors
    assert waits[-1] <= timeout
    assert health[-1] < 2.0
    assert len(health) > 2 * seconds
    assert max(seen.memory) - start < 48 << 20
    narrow.ask(next(sessions), "And now?")
    assert narrow.metric("reeltalk_num_queued_sequences") == 0
