"""What is bad fails alone: in a worker the others go on, and a worker that dies of one takes no other with it."""

import asyncio
import hashlib
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from model.engine.sampling_params import SamplingParams
from model.features import unpack
from model.text.conversation import Turn
from service.errors import InternalError
from service.observability.metrics import Metrics
from service.workers.pool import Pool, WorkersCannotStart
from service.workers.protocol import Encode, Encoded, Generate, Refused
from tests.service.workers.test_pool import PATIENCE, conversation, encode, end_of, generate, pool_of, until_ready

LONG = SamplingParams(max_tokens=120, ignore_eos=True)


class Deadly(str):
    """A text that ends the process that receives it, as a fault in a kernel would."""

    __slots__ = ()

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (7,)


def smuggled(**fields: object) -> SamplingParams:
    """Parameters that no bound was applied to."""
    params = SamplingParams()
    for name, value in fields.items():
        object.__setattr__(params, name, value)
    return params


def of_nothing(blob: bytes, num_values: int) -> bytes:
    """The same blob with features that are no numbers, sealed anew."""
    body = blob[32:]
    body = body[: -2 * num_values] + np.full(num_values, np.nan, np.float16).tobytes()
    return hashlib.sha256(body).digest() + body


async def ends_of(pool: Pool, *job_ids: str) -> dict[str, tuple[str, list[int]]]:
    """How each answer ended, and the tokens it had."""
    said: dict[str, list[int]] = {job_id: [] for job_id in job_ids}
    ends: dict[str, tuple[str, list[int]]] = {}
    async with asyncio.timeout(PATIENCE):
        while len(ends) < len(job_ids):
            output = await pool.outputs.get()
            if isinstance(output, Refused):
                ends[output.job_id] = output.code, []
                continue
            said[output.job_id] += output.token_ids
            if output.finish_reason is not None:
                ends[output.job_id] = output.finish_reason, said[output.job_id]
    return ends


async def test_a_poisoned_request_fails_alone() -> None:
    """One process tells the whole story: starting one takes seconds."""
    metrics = Metrics()
    async with pool_of(1, metrics=metrics) as pool:
        info = await pool.started()
        worker = await until_ready(pool)

        # clips of one shape go through the encoder together, and one that is cut short fails by itself
        cut = encode(info, "req_cut")
        cut = replace(cut, frames=cut.frames[:-1])
        other = encode(info, "req_other", key="features:other")
        empty = replace(encode(info, "req_empty"), shape=(0, 1, 1, 3), frames=b"")
        clips = [encode(info, "req_1"), cut, empty, *(replace(other, job_id=f"req_other_{n}") for n in range(4))]
        results = await at_once(pool, worker, clips)
        assert [isinstance(result, InternalError) for result in results] == [False, True, True] + [False] * 4
        num_encoded = metrics.registry.get_sample_value("reeltalk_encode_batch_clips_count")
        num_mates = metrics.registry.get_sample_value("reeltalk_encode_batch_clips_sum")
        assert num_mates is not None
        assert num_encoded == 5 < num_mates, "not each by itself: the others came while the first was encoded"
        encoded, same = results[0], results[-1]
        assert isinstance(encoded, Encoded)
        assert isinstance(same, Encoded)
        blob = encoded.blob
        features = unpack(blob, key="features:key", shape=info.feature_shape)
        others = unpack(same.blob, key="features:other", shape=info.feature_shape)
        assert np.abs(features - others).max() <= 2**-8 * np.abs(features).max(), "see tests/model/test_clip_encoder.py"

        # what is no question is refused, and the answers in the same batch are those given alone
        good = replace(generate("ans_alone", blob=blob), params=LONG)
        alone = (await ends_of(pool, *_sent(pool, good)))["ans_alone"]
        assert alone == ("length", alone[1])
        assert len(alone[1]) == LONG.max_tokens
        bad = {
            "invalid_value": [
                replace(good, job_id="nan", params=smuggled(temperature=float("nan"))),
                replace(good, job_id="nan_on_and_on", params=smuggled(temperature=float("nan"), ignore_eos=True)),
                replace(good, job_id="endless", params=smuggled(max_tokens=10**12)),
                replace(good, job_id="beams", params=smuggled(num_beams=10**6)),
            ],
            "engine_error": [
                replace(good, job_id="cut", features=(blob[:-1],)),
                replace(good, job_id="none", features=()),
                replace(good, job_id="noise", features=(b"\0" * len(blob),)),
                replace(good, job_id="tokens", output_token_ids=(10**9,)),
                replace(good, job_id="nothing", conversation=replace(conversation(), turns=())),
            ],
            "context_length_exceeded": [replace(good, job_id="long", conversation=conversation(text="word " * 20_000))],
            "error": [
                replace(
                    good,
                    job_id="not_finite",
                    features=(of_nothing(same.blob, features.size),),
                    feature_keys=("features:other",),  # the same key would promise the same features
                )
            ],
        }
        mates = [replace(good, job_id=f"ans_{n}") for n in range(3)]
        sent = _sent(pool, mates[0], *bad["engine_error"], mates[1], *bad["invalid_value"], *bad["error"], mates[2])
        sent += _sent(pool, *bad["context_length_exceeded"])
        ends = await ends_of(pool, *sent)
        for reason, commands in bad.items():
            assert {command.job_id: ends[command.job_id][0] for command in commands} == {
                command.job_id: reason for command in commands
            }
        assert [ends[mate.job_id] for mate in mates] == [alone] * 3
        assert pool.pids == (worker,), "it lives"

        # what the prefix cache spared is told, and what the engine did is counted
        pool.generate(good)
        delta = (await end_of(pool, "ans_alone"))[0][-1]
        assert delta.num_prompt_tokens - 16 <= delta.num_cached_tokens + 1 <= delta.num_prompt_tokens
        queries = metrics.registry.get_sample_value("reeltalk_prefix_cache_queries_total")
        hits = metrics.registry.get_sample_value("reeltalk_prefix_cache_hits_total")
        assert queries == 5 * delta.num_prompt_tokens
        assert queries is not None
        assert hits is not None
        assert delta.num_cached_tokens <= hits < queries
        assert metrics.registry.get_sample_value("reeltalk_kv_cache_usage_ratio", {"worker": "0"}) is not None
        assert metrics.registry.get_sample_value("reeltalk_num_preemptions_total", {"worker": "0"}) == 0


def _sent(pool: Pool, *commands: Generate) -> list[str]:
    for command in commands:
        pool.generate(command)
    return [command.job_id for command in commands]


async def at_once(pool: Pool, worker: int, clips: list[Encode]) -> list[object]:
    """Encode clips that a worker finds all waiting."""
    os.kill(worker, signal.SIGSTOP)
    tasks = [asyncio.create_task(pool.encode(clip)) for clip in clips]
    await asyncio.sleep(0.3)
    os.kill(worker, signal.SIGCONT)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_of_those_under_whom_workers_die_only_the_cause_is_given_up() -> None:
    async with pool_of(1) as pool:
        info = await pool.started()
        blob = (await pool.encode(encode(info, "req_1"))).blob
        good = replace(generate("ans_1", blob=blob), params=LONG)
        deadly = replace(good.conversation, turns=(Turn(role="user", text=Deadly("boom")),))
        poison = replace(good, job_id="poison", conversation=deadly)
        ends = await ends_of(pool, *_sent(pool, good, poison, replace(good, job_id="ans_2")))
        assert ends["poison"] == ("worker_lost", [])
        assert ends["ans_1"] == ends["ans_2"]
        assert ends["ans_1"][0] == "length"
        await until_ready(pool)
        assert repr(pool) == "Pool(ready=1, starting=0, jobs=0, waiting=0)"


async def test_a_model_that_cannot_be_loaded_is_given_up_with_its_cause_and_tried_ever_more_rarely() -> None:
    async with pool_of("encode,generate", checkpoint="/nowhere") as pool:
        first = set(pool.pids)
        with pytest.raises(WorkersCannotStart, match=r"/nowhere/config\.json does not exist") as cause:
            await asyncio.wait_for(pool.started(), PATIENCE)
        assert not pool.ready
        assert any(problem.endswith(f"does not start: {cause.value}") for problem in pool.problems)
        async with asyncio.timeout(PATIENCE):
            while not set(pool.pids) - first:  # noqa: ASYNC110  seen from outside
                await asyncio.sleep(0.05)
        assert pool.problems, "it is still told of while the next try is under way"


async def test_a_worker_that_dies_without_a_word_is_tried_again_before_it_is_told_of() -> None:
    async with pool_of(1) as pool:
        pids: set[int] = set()
        async with asyncio.timeout(PATIENCE):
            while not pool.problems:
                for pid in set(pool.pids) - pids:
                    os.kill(pid, signal.SIGKILL)
                    pids.add(pid)
                await asyncio.sleep(0.02)
        assert len(pids) == 3
        assert "its process ended with status -9 while it loaded the model" in pool.problems[0]
        with pytest.raises(WorkersCannotStart):
            await pool.started()
        await until_ready(pool)
        assert pool.problems == (), "nothing is wrong any more"
