"""`overhead`: measure the cost of HTTP, Redis and the worker's pipe, in tokens/s of 16 streams.

Compares the service with the engine alone, in alternating rounds. The model is VideoChat with the default model's
encoder and a LLaMA of 134 M random parameters: with the default model a step takes two milliseconds, so that Python
would dominate. Both sides have the same weights, threads, limits and prompts, and both have cached the prompts' blocks
after the first round, which does not count. Sessions are created before the clock starts.
"""

import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx2
import torch
from rich.console import Console

from benchmarks.http import upload
from benchmarks.published_size import random_tensors
from benchmarks.table import show
from model.checkpoints.folder import Checkpoint, write_folder
from model.engine.engine import Engine, EngineConfig, Segment
from model.engine.sampling_params import SamplingParams
from model.families import load_family
from model.families.videochat.family import DEFAULT_CHECKPOINT
from model.families.videochat.network import VideoChatConfig
from model.family import build_prompt
from model.networks.llama import DecoderConfig
from model.offline import watch
from model.text.conversation import Conversation, Turn
from service.commands.demo import SAMPLE, running_service
from service.settings import load_settings
from service.terminal.load import Load, measure_answer

GOAL = 0.9
ROUNDS, NUM_STREAMS, NUM_TOKENS = 5, 16, 64
LOAD = Load(num_streams=NUM_STREAMS, num_answers=NUM_STREAMS, num_tokens=NUM_TOKENS, question="What happens?")
DECODER = DecoderConfig(vocab_size=32_000, width=768, depth=12, num_heads=12, mlp_width=2048)
PRINTABLE = range(819, 914)
"""The ids of the default model's tokens that are one character each."""
PREFILL_BESIDE_DECODE = 24
"""The value that a worker uses on a CPU."""


def main() -> int:
    """Measure and print; returns 1 if the share is below the goal."""
    with tempfile.TemporaryDirectory(prefix="reeltalk-bench-") as folder:
        checkpoint = Path(folder) / "checkpoint"
        sizes = VideoChatConfig.from_json(json.loads((DEFAULT_CHECKPOINT / "config.json").read_bytes()))
        write(checkpoint, replace(sizes, decoder=DECODER))
        results = asyncio.run(_by_turns(Path(folder) / "data", checkpoint))
    rows = [[name, f"{rate:.1f}"] for name, rate in results.items() if name != "share"]
    show(f"{NUM_STREAMS} streams, medians of {ROUNDS} rounds", ("", "tokens/s"), rows)
    print(f"over HTTP: {results['share']:.1%} of the engine's rate (median of the rounds' ratios)")
    print(json.dumps({"benchmark": "overhead", "machine": platform.machine(), **results}))
    return int(results["share"] < GOAL)


def write(folder: Path, config: VideoChatConfig) -> None:
    """Write a checkpoint of random weights that generates letters, so that each token is an event of the stream."""
    tensors = random_tensors(config)
    head = tensors["llama_model.lm_head.weight"].clone()
    head[: PRINTABLE.start] *= 0.01
    head[PRINTABLE.stop :] *= 0.01
    checkpoint = Checkpoint(
        family="videochat",
        sizes=config.to_json(),
        tensors=tensors | {"llama_model.lm_head.weight": head},
        dtype=torch.bfloat16,
        beside={"tokenizer.model": DEFAULT_CHECKPOINT / "tokenizer.model"},
    )
    write_folder(folder, checkpoint, origin="random", report=lambda _done, _total: None)


async def _by_turns(data_dir: Path, checkpoint: Path) -> dict[str, float]:
    torch.set_num_threads(load_settings().threads_for(1))
    engine, prompt = _engine(checkpoint)
    environment = _environment(REELTALK_CHECKPOINT=str(checkpoint), REELTALK_DTYPE="bfloat16")
    pairs = []
    with environment, running_service(data_dir, Console(quiet=True)) as url:
        async with httpx2.AsyncClient(base_url=url, timeout=300.0) as client:
            video_id = await upload(client, SAMPLE.read_bytes())
            for number in range(ROUNDS + 1):
                pairs.append((await _over_http(client, video_id), _by_itself(engine, prompt)))
                print(f"round {number}: {pairs[-1][0]:.1f} and {pairs[-1][1]:.1f} tokens/s", file=sys.stderr)
    pairs = pairs[1:]  # the first round warms the caches
    return {
        "over HTTP": statistics.median(http for http, _ in pairs),
        "the engine by itself": statistics.median(alone for _, alone in pairs),
        "share": statistics.median(http / alone for http, alone in pairs),
    }


async def _over_http(client: httpx2.AsyncClient, video_id: str) -> float:
    sessions = [
        (await client.post("/v1/sessions", json={"video_ids": [video_id]})).raise_for_status().json()["id"]
        for _ in range(NUM_STREAMS)
    ]
    start = time.perf_counter()
    answers = await asyncio.gather(*(measure_answer(client, session, LOAD.message) for session in sessions))
    took = time.perf_counter() - start
    if failures := [answer.failure for answer in answers if answer.failure]:
        raise SystemExit(f"Answers failed: {', '.join(failures)}.")
    assert sum(answer.num_tokens for answer in answers) == NUM_STREAMS * NUM_TOKENS
    return NUM_STREAMS * NUM_TOKENS / took


def _engine(checkpoint: Path) -> tuple[Engine, tuple[Segment, ...]]:
    """Create an engine with a worker's configuration, and the prompt of every session."""
    family = load_family("videochat", checkpoint=checkpoint, dtype=torch.bfloat16)
    clip, encoded = watch(family, SAMPLE)
    conversation = Conversation(clips=(clip,), turns=(Turn(role="user", text=LOAD.question),))
    prompt = tuple(build_prompt(family, conversation, [encoded]))
    config = EngineConfig(max_model_len=family.max_model_len, max_prefill_beside_decode=PREFILL_BESIDE_DECODE)
    return Engine(family.language_model, family.tokenizer, config), prompt


def _by_itself(engine: Engine, prompt: tuple[Segment, ...]) -> float:
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    for number in range(NUM_STREAMS):
        engine.add_request(str(number), prompt, params)
    start, num_tokens = time.perf_counter(), 0
    while engine.has_work:
        num_tokens += sum(len(output.token_ids) for output in engine.step())
    assert num_tokens == NUM_STREAMS * NUM_TOKENS
    return num_tokens / (time.perf_counter() - start)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    raise SystemExit(main())
