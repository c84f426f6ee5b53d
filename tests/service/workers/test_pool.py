"""Every job ends: it waits for a worker, outlives one, fails with a code, or ends with the pool."""

import asyncio
import os
import signal

import numpy as np
import pytest

from model.features import unpack
from service.errors import InternalError, InvalidRequest, Unavailable
from service.workers.protocol import Encode
from tests.running import is_alive
from tests.service.workers.pools import (
    PATIENCE,
    Outputs,
    conversation,
    encode,
    end_of,
    generate,
    pool_of,
    until_ready,
)

# -- without a worker


async def test_a_job_waits_for_a_worker_and_no_longer_than_its_timeout() -> None:
    async with pool_of(0, encode_timeout=0.1) as pool:
        pool.generate(generate("ans_1"), Outputs().put_nowait)
        assert repr(pool) == "Pool(Supervisor(ready=0, starting=0), Dispatcher(jobs=1, waiting=1))"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.check(conversation()), 0.1)
        frames = Encode(job_id="req_1", key="k", frames=b"", shape=(1, 1, 1, 3), frame_indices=(0,), timestamps=(0.0,))
        with pytest.raises(InternalError, match="too long"):
            await pool.encode(frames)
        assert "jobs=1, waiting=1" in repr(pool), "jobs whose caller gave up are removed"
        with pytest.raises(TimeoutError):
            await pool.info(timeout=0.1)


async def test_an_answer_that_was_never_sent_is_aborted_at_once() -> None:
    outputs = Outputs()
    async with pool_of(0) as pool:
        pool.generate(generate("ans_1"), outputs.put_nowait)
        pool.abort("ans_1")
        pool.abort("ans_1")
        pool.abort("ans_unknown")
        deltas, reason = await end_of(outputs, "ans_1")
        assert (reason, [delta.token_ids for delta in deltas]) == ("abort", [()])
    assert outputs.empty()


async def test_closing_fails_the_jobs_that_remain_and_refuses_new_ones() -> None:
    outputs = Outputs()
    async with pool_of(0) as pool:
        pool.generate(generate("ans_1"), outputs.put_nowait)
        checking = asyncio.create_task(pool.check(conversation()))
        await asyncio.sleep(0)
    assert outputs.qsize() == 1, "the sinks have run when close returns"
    assert await end_of(outputs, "ans_1") == ([], "worker_lost")
    with pytest.raises(InternalError, match="shutting down"):
        await checking
    with pytest.raises(InternalError, match="shutting down"):
        pool.generate(generate("ans_2"), outputs.put_nowait)
    assert outputs.empty()


async def test_closing_with_a_cause_tells_it_to_jobs_that_remain_and_to_new_ones() -> None:
    outputs, cause = Outputs(), Unavailable("model_unavailable", "The model 'tiny' was unloaded.")
    async with pool_of(0) as pool:
        pool.generate(generate("ans_1"), outputs.put_nowait)
        checking = asyncio.create_task(pool.check(conversation()))
        await asyncio.sleep(0)
        pool.retire(cause)
        with pytest.raises(Unavailable, match="was unloaded"):
            pool.generate(generate("ans_2"), outputs.put_nowait)
        await pool.close(cause)
        assert await end_of(outputs, "ans_1") == ([], "model_unavailable")
        with pytest.raises(Unavailable, match="was unloaded"):
            await checking
    assert outputs.empty()


async def test_closing_ends_a_worker_that_is_still_starting() -> None:
    async with pool_of(1) as pool:
        assert is_alive(pool.pids[0])


# -- with a worker, and with workers that die


async def test_the_life_of_a_worker() -> None:
    """One test, because starting a worker takes seconds."""
    outputs = Outputs()
    async with pool_of(1) as pool:
        # jobs that were submitted before the worker was ready are sent when it is
        early = asyncio.create_task(pool.check(conversation()))
        await asyncio.sleep(0)
        assert not pool.ready
        num_prompt_tokens = await early
        info = await pool.info(timeout=PATIENCE)
        first = await until_ready(pool)
        assert info.num_video_tokens < num_prompt_tokens < info.max_model_len

        # it encodes, and answers a question about the features
        encoded = await pool.encode(encode(info, "req_1"))
        assert np.isfinite(unpack(encoded.blob, key="features:key", parts=info.parts)["video"]).all()
        pool.generate(generate("ans_1", blob=encoded.blob), outputs.put_nowait)
        deltas, reason = await end_of(outputs, "ans_1")
        token_ids = [token for delta in deltas for token in delta.token_ids]
        assert reason in {"stop", "length"}
        assert deltas[-1].num_prompt_tokens == num_prompt_tokens

        # it refuses jobs that it cannot do, and continues
        with pytest.raises(InvalidRequest) as refused:
            await pool.check(conversation(text="word " * 4 * info.max_model_len))
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(InternalError) as failed:
            await asyncio.wait_for(pool.check(conversation(fps=0.0)), 10)
        assert failed.value.code == "engine_error"
        pool.generate(generate("ans_2", blob=encoded.blob[:-1]), outputs.put_nowait)
        assert await end_of(outputs, "ans_2") == ([], "engine_error")
        pool.generate(generate("ans_3", blob=encoded.blob, max_tokens=1500, ignore_eos=True), outputs.put_nowait)
        await outputs.get()
        pool.abort("ans_3")
        _, reason = await end_of(outputs, "ans_3")
        assert reason == "abort"
        assert await pool.check(conversation()) == num_prompt_tokens

        # jobs of a worker that dies go to the next one
        os.kill(first, signal.SIGSTOP)
        pool.generate(generate("ans_4", blob=encoded.blob), outputs.put_nowait)
        lost = asyncio.create_task(pool.encode(encode(info, "req_2")))
        await asyncio.sleep(0.1)
        os.kill(first, signal.SIGKILL)
        await asyncio.sleep(0.1)
        assert not is_alive(first)
        pool.abort("ans_4")
        assert (await end_of(outputs, "ans_4"))[1] == "abort", "a job that waits for a worker is aborted at once"
        later = asyncio.create_task(pool.check(conversation()))

        # a job fails when the third of its workers dies; a later job does not
        second = await until_ready(pool, other_than=first)
        os.kill(second, signal.SIGKILL)
        third = await until_ready(pool, other_than=second)
        assert not lost.done()
        os.kill(third, signal.SIGKILL)
        with pytest.raises(InternalError) as error:
            await lost
        assert error.value.code == "worker_lost"
        assert await later == num_prompt_tokens
        pool.generate(generate("ans_5", blob=encoded.blob), outputs.put_nowait)
        deltas, _ = await end_of(outputs, "ans_5")
        assert [token for delta in deltas for token in delta.token_ids] == token_ids
        assert repr(pool) == "Pool(Supervisor(ready=1, starting=0), Dispatcher(jobs=0, waiting=0))"
