"""Puts a load on a service and measures latency and throughput at the client."""

import asyncio
import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from service.terminal.connection import Document
from service.terminal.events import EventReader

_TIMEOUT = httpx2.Timeout(600.0, connect=10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """A load: `num_answers` in total, `num_streams` at the same time, each of exactly `num_tokens` tokens."""

    num_streams: int
    num_answers: int
    num_tokens: int
    question: str

    @property
    def message(self) -> Document:
        """The body of each request."""
        return {
            "content": self.question,
            "stream": True,
            "temperature": 0,
            "max_tokens": self.num_tokens,
            "ignore_eos": True,
        }


@dataclass(kw_only=True, slots=True)
class MeasuredAnswer:
    """The measurements of one answer, in seconds; `failure` is the code of its error."""

    first: float = math.nan
    """From sending the question to the first delta."""
    gaps: list[float] = field(default_factory=list)
    """The times between two deltas; a delta has one or several tokens."""
    generating: float = 0.0
    """From the first delta to the last."""
    num_tokens: int = 0
    failure: str | None = None


async def measure_answer(http: httpx2.AsyncClient, session_id: str, message: Document) -> MeasuredAnswer:
    """Ask in a session and read the answer to its end."""
    answered = MeasuredAnswer()
    begin = time.perf_counter()
    try:
        async with http.stream("POST", f"/v1/sessions/{session_id}/messages", json=message) as reply:
            if not reply.is_success:
                await reply.aread()
                answered.failure = _code(reply)
                return answered
            await _read(reply, answered, begin)
    except httpx2.TransportError:
        answered.failure = "connection_lost"
    return answered


async def run_load(
    http: httpx2.AsyncClient, session_ids: Sequence[str], load: Load, on_answer: Callable[[int], None]
) -> Document:
    """Run a load: as many readers as streams, each of which takes the next session when its answer has ended."""
    waiting = iter(session_ids)
    count = itertools.count(1)

    async def reader() -> list[MeasuredAnswer]:
        mine = []
        for session_id in waiting:
            mine.append(await measure_answer(http, session_id, load.message))
            on_answer(next(count))
        return mine

    begin = time.perf_counter()
    answers = list(itertools.chain(*await asyncio.gather(*(reader() for _ in range(load.num_streams)))))
    return summary(answers, load, seconds=time.perf_counter() - begin)


def summary(answers: Sequence[MeasuredAnswer], load: Load, *, seconds: float) -> Document:
    """Summarise the answers of a load that took `seconds`; failed answers are counted in `failed` only.

    Returns:
        Throughput by the second, and times in milliseconds.
    """
    good = [answer for answer in answers if answer.failure is None]
    num_tokens = sum(answer.num_tokens for answer in good)
    return {
        "streams": load.num_streams,
        "answers": len(good),
        "failed": dict(Counter(answer.failure for answer in answers if answer.failure is not None)),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(num_tokens / seconds, 1),
        "answers_per_second": round(len(good) / seconds, 3),
        "time_to_first_token_ms": _spread(answer.first for answer in good),
        "inter_token_latency_ms": _spread(gap for answer in good for gap in answer.gaps),
        "time_per_output_token_ms": _spread(
            answer.generating / (answer.num_tokens - 1) for answer in good if answer.num_tokens > 1
        ),
    }


def run(
    url: str, api_key: str | None, session_ids: Sequence[str], load: Load, on_answer: Callable[[int], None]
) -> Document:
    """Put a load on the service at `url`; returns its summary."""

    async def measure() -> Document:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT, limits=limits) as http:
            return await run_load(http, session_ids, load, on_answer)

    return asyncio.run(measure())


async def _read(reply: httpx2.Response, answered: MeasuredAnswer, begin: float) -> None:
    reader = EventReader()
    last: float | None = None
    answered.failure = "connection_lost"  # replaced by the last event
    async for line in reply.aiter_lines():
        event = reader.feed(line)
        if event is None:
            continue
        now = time.perf_counter()
        if event.name == "delta":
            if last is None:
                answered.first = now - begin
            else:
                answered.gaps.append(now - last)
            last = now
        elif event.name == "done":
            answered.num_tokens = int(event.data["usage"]["completion_tokens"])
            answered.generating = sum(answered.gaps)
            answered.failure = None if last is not None else "no_text"
        elif event.name == "error":
            answered.failure = _code_of(event.data)


def _code(reply: httpx2.Response) -> str:
    try:
        return _code_of(reply.json())
    except ValueError:
        return f"status_{reply.status_code}"


def _code_of(envelope: Any) -> str:
    error = envelope.get("error") if isinstance(envelope, dict) else None
    return str(error.get("code")) if isinstance(error, dict) else "unknown"


def _spread(seconds: Iterator[float]) -> Document:
    """Mean, median and 99th percentile in milliseconds; None without measurements."""
    values = [value * 1000 for value in seconds]
    if not values:
        return {"mean": None, "p50": None, "p99": None}
    if len(values) == 1:
        values *= 2
    quantiles = statistics.quantiles(values, n=100, method="inclusive")
    found = {"mean": statistics.fmean(values), "p50": quantiles[49], "p99": quantiles[98]}
    return {name: round(value, 3) for name, value in found.items()}
