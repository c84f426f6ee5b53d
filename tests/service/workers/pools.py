"""Pools of real worker processes with small models, and commands for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from model.engine.sampling_params import SamplingParams
from model.modalities import sees_videos
from model.text.conversation import Clip, Conversation, Turn
from service.observability.metrics import Metrics
from service.settings import load_settings
from service.workers.pool import Pool
from service.workers.pools import Pools
from service.workers.protocol import Delta, Encode, Generate, ModelInfo, Refused, WorkerConfig
from service.workers.specs import parse_workers
from tests.running import is_alive

CONFIG = WorkerConfig(
    name="tiny",
    family="videochat",
    checkpoint=None,
    workers=dict(enumerate(parse_workers("1", device="cpu"))),
    number=0,
    dtype="float32",
    quantization=None,
    threads=1,
    max_num_seqs=4,
    max_num_batched_tokens=512,
    cuda_graphs=True,
    max_num_batched_frames=64,
)
PATIENCE = 90.0
"""Seconds that a test waits for a worker."""

Outputs = asyncio.Queue[Delta | Refused]
"""Outputs of generate jobs in the order of arrival; `put_nowait` is the sink."""


@asynccontextmanager
async def pool_of(
    workers: int | str, *, encode_timeout: float = PATIENCE, metrics: Metrics | None = None, **fields: Any
) -> AsyncIterator[Pool]:
    """A started pool with the workers of `REELTALK_WORKERS`, or none for 0; checks that close ends every process."""
    config = replace(CONFIG, **fields)
    has_encoder = sees_videos(config.family)
    specs = dict(enumerate(parse_workers(str(workers), device="cpu", has_encoder=has_encoder) if workers else ()))
    config = replace(config, workers=specs)
    configs = [replace(config, number=number) for number in specs]
    pool = Pool(configs, encode_timeout=encode_timeout, metrics=(metrics or Metrics()).of_model(CONFIG.name))
    pool.start()
    pids = pool.pids
    try:
        yield pool
    finally:
        pids += pool.pids
        await pool.close()
        assert not [pid for pid in pids if is_alive(pid)]


@asynccontextmanager
async def pools_of(*models: str, metrics: Metrics | None = None, **fields: Any) -> AsyncIterator[Pools]:
    """Started pools of models `NAME=FAMILY:CHECKPOINT`, on the CPU; checks that close ends every process."""
    settings = load_settings({"model": models, "device": "cpu", "threads": 1, **fields}, environ={})
    pools = Pools(settings, metrics=metrics or Metrics())
    pools.start()
    try:
        yield pools
    finally:
        pids = [pid for model in pools for pid in model.pool.pids]
        await pools.close()
        assert not [pid for pid in pids if is_alive(pid)]


async def until_ready(pool: Pool, *, other_than: int = 0) -> int:
    """Wait until the one worker, with a process id other than this one, is ready; return its process id."""
    async with asyncio.timeout(PATIENCE):
        while not pool.ready or pool.pids == (other_than,):  # noqa: ASYNC110  a pool has no event for this
            await asyncio.sleep(0.001)
    return pool.pids[0]


def conversation(*, text: str = "What is it?", fps: float = 1.0) -> Conversation:
    clip = Clip(frame_indices=tuple(range(8)), fps=fps)
    return Conversation(clips=(clip,), turns=(Turn(role="user", text=text),))


def encode(info: ModelInfo, job_id: str, *, key: str = "features:key") -> Encode:
    assert info.inputs is not None
    size = info.inputs.pixels.size
    shape = (info.inputs.frames.count, size, size, 3)
    return Encode(
        job_id=job_id,
        key=key,
        frames=np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8).tobytes(),
        shape=shape,
        frame_indices=tuple(range(shape[0])),
        timestamps=tuple(map(float, range(shape[0]))),
    )


def generate(
    job_id: str, *, blob: bytes = b"", key: str = "features:key", max_tokens: int = 4, ignore_eos: bool = False
) -> Generate:
    return Generate(
        job_id=job_id,
        conversation=conversation(),
        features=(blob,),
        feature_keys=(key,),
        cache_salt="acme",
        params=SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos),
    )


async def end_of(outputs: Outputs, job_id: str) -> tuple[list[Delta], str]:
    """The deltas of a job, and its finish reason or error code. No other job may write to `outputs`."""
    deltas: list[Delta] = []
    async with asyncio.timeout(PATIENCE):
        while True:
            output = await outputs.get()
            assert output.job_id == job_id
            if isinstance(output, Refused):
                return deltas, output.code
            deltas.append(output)
            if output.finish_reason is not None:
                return deltas, output.finish_reason


async def ends_of(outputs: Outputs, *job_ids: str) -> dict[str, tuple[str, list[int]]]:
    """The finish reason and tokens of each job; the error code and no tokens for a job that failed."""
    token_ids: dict[str, list[int]] = {job_id: [] for job_id in job_ids}
    ends: dict[str, tuple[str, list[int]]] = {}
    async with asyncio.timeout(PATIENCE):
        while len(ends) < len(job_ids):
            output = await outputs.get()
            if isinstance(output, Refused):
                ends[output.job_id] = output.code, []
                continue
            token_ids[output.job_id] += output.token_ids
            if output.finish_reason is not None:
                ends[output.job_id] = output.finish_reason, token_ids[output.job_id]
    return ends
