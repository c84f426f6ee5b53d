"""No job falls between two workers: it waits for one, outlives one, is given up by name, or ends with the pool."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.engine.sampling_params import SamplingParams
from model.features import unpack
from model.text.conversation import Clip, Conversation, Turn
from service.errors import InternalError, InvalidRequest
from service.observability.metrics import Metrics
from service.workers.pool import Pool
from service.workers.protocol import Delta, Encode, Generate, ModelInfo, Refused, WorkerConfig
from service.workers.roles import parse_places
from tests.running import is_alive

CONFIG = WorkerConfig(
    name="tiny",
    family="videochat",
    checkpoint=None,
    places=parse_places("1", device="cpu"),
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


@asynccontextmanager
async def pool_of(
    workers: int | str, *, encode_timeout: float = PATIENCE, metrics: Metrics | None = None, **fields: Any
) -> AsyncIterator[Pool]:
    """A started pool; when it is closed, none of its processes is left."""
    places = parse_places(str(workers), device="cpu") if workers else ()
    config = replace(CONFIG, places=places, **fields)
    configs = [replace(config, number=number) for number in range(len(places))]
    pool = Pool(configs, encode_timeout=encode_timeout, metrics=metrics or Metrics())
    pool.start()
    pids = pool.pids
    try:
        yield pool
    finally:
        pids += pool.pids
        await pool.close()
        assert not [pid for pid in pids if is_alive(pid)]


def conversation(*, text: str = "What is it?", fps: float = 1.0) -> Conversation:
    clip = Clip(frame_indices=tuple(range(8)), fps=fps)
    return Conversation(clips=(clip,), turns=(Turn(role="user", text=text),))


def encode(info: ModelInfo, job_id: str, *, key: str = "features:key") -> Encode:
    shape = (info.frame_spec.count, info.pixel_spec.size, info.pixel_spec.size, 3)
    return Encode(
        job_id=job_id,
        key=key,
        frames=np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8).tobytes(),
        shape=shape,
        frame_indices=tuple(range(shape[0])),
        timestamps=tuple(map(float, range(shape[0]))),
    )


def generate(job_id: str, *, blob: bytes = b"", key: str = "features:key", max_tokens: int = 4) -> Generate:
    return Generate(
        job_id=job_id,
        conversation=conversation(),
        features=(blob,),
        feature_keys=(key,),
        cache_salt="acme",
        params=SamplingParams(max_tokens=max_tokens),
    )


async def until_ready(pool: Pool, *, but: int = 0) -> int:
    """Wait for a worker that takes jobs, another one than `but`; returns its process id."""
    async with asyncio.timeout(PATIENCE):
        while not pool.ready or pool.pids == (but,):  # noqa: ASYNC110  seen from outside
            await asyncio.sleep(0.001)
    return pool.pids[0]


Outputs = asyncio.Queue[Delta | Refused]
"""What sinks have taken: its `put_nowait` is a sink."""


async def end_of(outputs: Outputs, job_id: str) -> tuple[list[Delta], str]:
    """The deltas of an answer, and its finish reason or error code. No other job writes to `outputs`."""
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


# -- without a worker


async def test_a_job_waits_for_a_worker_and_no_longer_than_it_may() -> None:
    outputs = Outputs()
    async with pool_of(0, encode_timeout=0.1) as pool:
        pool.generate(generate("ans_1"), outputs.put_nowait)
        assert repr(pool) == "Pool(ready=0, starting=0, jobs=1, waiting=1)"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.check(conversation()), 0.1)
        frames = Encode(job_id="req_1", key="k", frames=b"", shape=(1, 1, 1, 3), frame_indices=(0,), timestamps=(0.0,))
        with pytest.raises(InternalError, match="too long"):
            await pool.encode(frames)
        assert repr(pool) == "Pool(ready=0, starting=0, jobs=1, waiting=1)", "who gives up leaves nothing behind"
        with pytest.raises(TimeoutError):
            await pool.info(timeout=0.1)


async def test_an_answer_that_was_never_sent_is_aborted_at_once() -> None:
    outputs = Outputs()
    async with pool_of(0) as pool:
        pool.generate(generate("ans_1"), outputs.put_nowait)
        pool.abort("ans_1")
        pool.abort("ans_1")
        pool.abort("ans_nobody")
        deltas, reason = await end_of(outputs, "ans_1")
        assert (reason, [delta.token_ids for delta in deltas]) == ("abort", [()])
        assert outputs.empty()


async def test_closing_fails_what_remains_and_takes_nothing_more() -> None:
    outputs = Outputs()
    async with pool_of(0) as pool:
        pool.generate(generate("ans_1"), outputs.put_nowait)
        checking = asyncio.create_task(pool.check(conversation()))
        await asyncio.sleep(0)
    assert await end_of(outputs, "ans_1") == ([], "worker_lost")
    with pytest.raises(InternalError, match="shutting down"):
        await checking
    with pytest.raises(InternalError, match="shutting down"):
        pool.generate(generate("ans_2"), outputs.put_nowait)


async def test_closing_ends_a_worker_that_has_not_even_started() -> None:
    async with pool_of(1) as pool:
        assert is_alive(pool.pids[0])


# -- with one that lives, and one that dies


async def test_a_worker_s_life() -> None:
    """One process tells the whole story: starting one takes seconds."""
    outputs = Outputs()
    async with pool_of(1) as pool:
        # jobs that came before the worker are sent when it is ready
        early = asyncio.create_task(pool.check(conversation()))
        await asyncio.sleep(0)
        assert not pool.ready
        num_prompt_tokens = await early
        info = await pool.info(timeout=PATIENCE)
        first = await until_ready(pool)
        assert info.num_video_tokens < num_prompt_tokens < info.max_model_len

        # it encodes, and answers about what it encoded
        encoded = await pool.encode(encode(info, "req_1"))
        assert np.isfinite(unpack(encoded.blob, key="features:key", shape=info.feature_shape)).all()
        pool.generate(generate("ans_1", blob=encoded.blob), outputs.put_nowait)
        deltas, reason = await end_of(outputs, "ans_1")
        said = [token for delta in deltas for token in delta.token_ids]
        assert reason in {"stop", "length"}
        assert deltas[-1].num_prompt_tokens == num_prompt_tokens

        # what it cannot do it refuses, and lives on
        with pytest.raises(InvalidRequest) as refused:
            await pool.check(conversation(text="word " * 4 * info.max_model_len))
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(InternalError) as failed:
            await asyncio.wait_for(pool.check(conversation(fps=0.0)), 10)
        assert failed.value.code == "engine_error"
        pool.generate(generate("ans_2", blob=encoded.blob[:-1]), outputs.put_nowait)
        assert await end_of(outputs, "ans_2") == ([], "engine_error")
        pool.generate(generate("ans_3", blob=encoded.blob, max_tokens=2000), outputs.put_nowait)
        await outputs.get()
        pool.abort("ans_3")
        _, reason = await end_of(outputs, "ans_3")
        assert reason == "abort"
        assert await pool.check(conversation()) == num_prompt_tokens

        # a job in its hands when it dies goes to the next one
        os.kill(first, signal.SIGSTOP)
        pool.generate(generate("ans_4", blob=encoded.blob), outputs.put_nowait)
        poison = asyncio.create_task(pool.encode(encode(info, "req_2")))
        await asyncio.sleep(0.1)
        os.kill(first, signal.SIGKILL)
        await asyncio.sleep(0.1)
        assert not is_alive(first)
        pool.abort("ans_4")
        assert (await end_of(outputs, "ans_4"))[1] == "abort", "what waits for a worker is aborted at once"
        again = asyncio.create_task(pool.check(conversation()))

        # a job that sees a third one die is given up; what came later is not
        second = await until_ready(pool, but=first)
        os.kill(second, signal.SIGKILL)
        third = await until_ready(pool, but=second)
        assert not poison.done()
        os.kill(third, signal.SIGKILL)
        with pytest.raises(InternalError) as lost:
            await poison
        assert lost.value.code == "worker_lost"
        assert await again == num_prompt_tokens
        pool.generate(generate("ans_5", blob=encoded.blob), outputs.put_nowait)
        deltas, _ = await end_of(outputs, "ans_5")
        assert [token for delta in deltas for token in delta.token_ids] == said
        assert repr(pool) == "Pool(ready=1, starting=0, jobs=0, waiting=0)"
