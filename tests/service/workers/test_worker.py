"""A bad job fails alone: the other jobs of its worker succeed, even if it kills the worker."""

import asyncio
import hashlib
import os
import signal
from dataclasses import replace

import numpy as np

from model.engine.sampling_params import SamplingParams
from model.features import unpack
from model.text.conversation import Turn
from service.errors import InternalError
from service.observability.metrics import Metrics
from service.workers.pool import Pool
from service.workers.protocol import Encode, Encoded, Generate
from tests.service.workers.pools import Outputs, conversation, encode, end_of, ends_of, generate, pool_of, until_ready

MODEL = {"model_name": "tiny"}
LONG = SamplingParams(max_tokens=120, ignore_eos=True)


class Deadly(str):
    """A text that ends the process that unpickles it, as a crash in a kernel would."""

    __slots__ = ()

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (7,)


def unchecked(**fields: object) -> SamplingParams:
    """Sampling parameters that skip validation."""
    params = SamplingParams()
    for name, value in fields.items():
        object.__setattr__(params, name, value)
    return params


def with_nan_features(blob: bytes, num_values: int) -> bytes:
    """The same blob with NaN features and a valid checksum."""
    body = blob[32:]
    body = body[: -2 * num_values] + np.full(num_values, np.nan, np.float16).tobytes()
    return hashlib.sha256(body).digest() + body


async def test_a_poisoned_request_fails_alone() -> None:
    """One test, because starting a worker takes seconds."""
    metrics, outputs = Metrics(), Outputs()
    async with pool_of(1, metrics=metrics) as pool:
        info = await pool.started()
        worker = await until_ready(pool)

        # clips of one shape are encoded together, and a truncated one fails alone
        cut = encode(info, "req_cut")
        cut = replace(cut, frames=cut.frames[:-1])
        other = encode(info, "req_other", key="features:other")
        empty = replace(encode(info, "req_empty"), shape=(0, 1, 1, 3), frames=b"")
        clips = [encode(info, "req_1"), cut, empty, *(replace(other, job_id=f"req_other_{n}") for n in range(4))]
        results = await at_once(pool, worker, clips)
        assert [isinstance(result, InternalError) for result in results] == [False, True, True] + [False] * 4
        num_encoded = metrics.registry.get_sample_value("reeltalk_encode_batch_clips_count", MODEL)
        num_mates = metrics.registry.get_sample_value("reeltalk_encode_batch_clips_sum", MODEL)
        assert num_mates is not None
        assert num_encoded == 5 < num_mates, "clips that wait are batched"
        encoded, same = results[0], results[-1]
        assert isinstance(encoded, Encoded)
        assert isinstance(same, Encoded)
        blob = encoded.blob
        features = unpack(blob, key="features:key", parts=info.parts)["video"]
        others = unpack(same.blob, key="features:other", parts=info.parts)["video"]
        assert np.abs(features - others).max() <= 2**-8 * np.abs(features).max(), "see tests/model/test_clip_encoder.py"

        # bad prompts are refused, and the answers in the same batch are those of a prompt that runs alone
        good = replace(generate("ans_alone", blob=blob), params=LONG)
        alone = (await ends_of(outputs, *submit(pool, outputs, good)))["ans_alone"]
        assert alone == ("length", alone[1])
        assert len(alone[1]) == LONG.max_tokens
        bad = {
            "invalid_value": [
                replace(good, job_id="nan", params=unchecked(temperature=float("nan"))),
                replace(good, job_id="nan_without_eos", params=unchecked(temperature=float("nan"), ignore_eos=True)),
                replace(good, job_id="endless", params=unchecked(max_tokens=10**12)),
                replace(good, job_id="beams", params=unchecked(num_beams=10**6)),
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
                    features=(with_nan_features(same.blob, features.size),),
                    feature_keys=("features:other",),  # the prefix cache relies on equal keys for equal features
                )
            ],
        }
        mates = [replace(good, job_id=f"ans_{n}") for n in range(3)]
        sent = submit(
            pool, outputs, mates[0], *bad["engine_error"], mates[1], *bad["invalid_value"], *bad["error"], mates[2]
        )
        sent += submit(pool, outputs, *bad["context_length_exceeded"])
        ends = await ends_of(outputs, *sent)
        for reason, commands in bad.items():
            assert {command.job_id: ends[command.job_id][0] for command in commands} == {
                command.job_id: reason for command in commands
            }
        assert [ends[mate.job_id] for mate in mates] == [alone] * 3
        assert pool.pids == (worker,), "the worker has not died"

        # the delta and the metrics report what the prefix cache saved
        pool.generate(good, outputs.put_nowait)
        delta = (await end_of(outputs, "ans_alone"))[0][-1]
        assert delta.num_prompt_tokens - 16 <= delta.num_cached_tokens + 1 <= delta.num_prompt_tokens
        queries = metrics.registry.get_sample_value("reeltalk_prefix_cache_queries_total", MODEL)
        hits = metrics.registry.get_sample_value("reeltalk_prefix_cache_hits_total", MODEL)
        assert queries == 5 * delta.num_prompt_tokens
        assert queries is not None
        assert hits is not None
        assert delta.num_cached_tokens <= hits < queries
        assert metrics.registry.get_sample_value("reeltalk_kv_cache_usage_ratio", MODEL | {"worker": "0"}) is not None
        assert metrics.registry.get_sample_value("reeltalk_num_preemptions_total", MODEL | {"worker": "0"}) == 0


def submit(pool: Pool, outputs: Outputs, *commands: Generate) -> list[str]:
    for command in commands:
        pool.generate(command, outputs.put_nowait)
    return [command.job_id for command in commands]


async def at_once(pool: Pool, worker: int, clips: list[Encode]) -> list[object]:
    """Encode clips that are all in the queue when the worker continues."""
    os.kill(worker, signal.SIGSTOP)
    tasks = [asyncio.create_task(pool.encode(clip)) for clip in clips]
    await asyncio.sleep(0.3)
    os.kill(worker, signal.SIGCONT)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_of_the_jobs_of_workers_that_die_only_the_cause_fails() -> None:
    outputs = Outputs()
    async with pool_of(1) as pool:
        info = await pool.started()
        blob = (await pool.encode(encode(info, "req_1"))).blob
        good = replace(generate("ans_1", blob=blob), params=LONG)
        deadly = replace(good.conversation, turns=(Turn(role="user", text=Deadly("boom")),))
        poison = replace(good, job_id="poison", conversation=deadly)
        ends = await ends_of(outputs, *submit(pool, outputs, good, poison, replace(good, job_id="ans_2")))
        assert ends["poison"] == ("worker_lost", [])
        assert ends["ans_1"] == ends["ans_2"]
        assert ends["ans_1"][0] == "length"
        await until_ready(pool)
        assert repr(pool) == "Pool(Supervisor(ready=1, starting=0), Dispatcher(jobs=0, waiting=0))"
