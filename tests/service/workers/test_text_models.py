"""Workers of a model that sees no videos: they generate, and the pool waits for no encoder."""

from dataclasses import replace

import pytest

from model.text.conversation import Conversation, Turn
from tests.service.workers.pools import Outputs, conversation, end_of, generate, pool_of

QUESTION = Conversation(clips=(), turns=(Turn(role="user", text="Hello?"),))


@pytest.mark.parametrize("workers", ["1", "generate"])
async def test_a_pool_is_ready_without_an_encoder_and_answers(workers: str) -> None:
    outputs = Outputs()
    async with pool_of(workers, family="mobillama", max_num_batched_tokens=4096) as pool:
        info = await pool.started()
        assert pool.ready
        assert (info.inputs, info.parts, info.num_video_tokens, info.modalities) == (None, (), 0, ("text",))
        num_prompt_tokens = await pool.check(QUESTION)
        command = replace(generate("ans_1"), conversation=QUESTION, features=(), feature_keys=())
        pool.generate(command, outputs.put_nowait)
        deltas, reason = await end_of(outputs, "ans_1")
        assert reason in {"stop", "length"}
        assert deltas[-1].num_prompt_tokens == num_prompt_tokens

        # a job about a video, which the service refuses before, fails alone
        pool.generate(replace(command, job_id="ans_2", conversation=conversation()), outputs.put_nowait)
        assert await end_of(outputs, "ans_2") == ([], "engine_error")
        pool.generate(replace(command, job_id="ans_3"), outputs.put_nowait)
        again, _ = await end_of(outputs, "ans_3")
        assert [delta.token_ids for delta in again] == [delta.token_ids for delta in deltas]
