"""`http`: measure uploads and answers over HTTP against a service that runs on this machine.

A cold upload is one of a clip that the service has not seen before. Times depend on the machine; compare ratios within
one run.
"""

import asyncio
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path

import httpx2
from rich.console import Console
from rich.table import Table

from service.commands.demo import SAMPLE, running_service
from service.terminal.load import Load, measure_answer

ROUNDS = 5
NUM_TOKENS = 64
STREAMS = (1, 4, 16)
LOAD = Load(num_streams=1, num_answers=1, num_tokens=NUM_TOKENS, question="What happens?")


def main() -> None:
    """Measure and print."""
    asyncio.run(_measure())


async def _measure() -> None:
    with tempfile.TemporaryDirectory(prefix="reeltalk-bench-") as data_dir:
        start = time.perf_counter()
        with running_service(Path(data_dir), Console(quiet=True)) as url:
            results = {"start_until_ready_s": time.perf_counter() - start}
            async with httpx2.AsyncClient(base_url=url, timeout=120.0) as client:
                results |= await uploads(client)
                for num_streams in STREAMS:
                    results |= await answers(client, num_streams=num_streams)
    results = {name: round(value, 4) for name, value in results.items()}
    show(results)
    print(json.dumps({"benchmark": "http", "machine": platform.machine(), **results}))


async def uploads(client: httpx2.AsyncClient) -> dict[str, float]:
    """Measure from the first byte sent to `ready`, for a new clip and for the same clip again."""
    clip = SAMPLE.read_bytes()
    cold, known = [], []
    for number in range(ROUNDS):
        unseen = clip + b"\0\0\0\x0cfree" + number.to_bytes(4)  # an empty box changes the hash but not the video
        cold.append(await timed(upload(client, unseen)))
        known.append(await timed(upload(client, unseen)))
    return {"upload_cold_s": statistics.median(cold), "upload_known_s": statistics.median(known)}


async def answers(client: httpx2.AsyncClient, *, num_streams: int) -> dict[str, float]:
    """Measure concurrent answers about one cached clip, of 64 tokens each."""
    video_id = await upload(client, SAMPLE.read_bytes())
    rates, firsts = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        streams = await asyncio.gather(*(answer(client, video_id) for _ in range(num_streams)))
        rates.append(sum(num_tokens for _, num_tokens in streams) / (time.perf_counter() - start))
        firsts.append(statistics.median(first for first, _ in streams))
    return {
        f"tokens_per_s_{num_streams}": statistics.median(rates),
        f"first_event_s_{num_streams}": statistics.median(firsts),
    }


async def upload(client: httpx2.AsyncClient, body: bytes) -> str:
    """Upload a clip and wait until it is ready; returns the id of the video."""
    reply = await client.post("/v1/videos", content=body, headers={"Content-Type": "video/mp4"})
    video_id: str = reply.raise_for_status().json()["id"]
    (await client.get(f"/v1/videos/{video_id}/events")).raise_for_status()  # ends when it is ready
    return video_id


async def answer(client: httpx2.AsyncClient, video_id: str) -> tuple[float, int]:
    """Ask in a new session; returns the seconds to the first delta and the number of tokens."""
    session = (await client.post("/v1/sessions", json={"video_ids": [video_id]})).raise_for_status().json()
    answered = await measure_answer(client, session["id"], LOAD.message)
    if answered.failure is not None:
        raise SystemExit(f"An answer failed: {answered.failure}.")
    return answered.first, answered.num_tokens


async def timed(work: Awaitable[object]) -> float:
    """Await `work`; returns the seconds that it took."""
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


def show(results: dict[str, float]) -> None:
    """Print the results as a table."""
    table = Table(title=f"medians of {ROUNDS} rounds over HTTP, model tiny, {NUM_TOKENS} tokens an answer")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in results.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)
