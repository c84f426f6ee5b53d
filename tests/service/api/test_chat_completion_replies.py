"""A chat completion, whole or streamed, has the moments that each of its answers names."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from service.answers.completions import ChoiceOutput, CompletionEnded, CompletionEvent, CompletionStarted
from service.api.chat_completion_replies import StreamContent, completion_chunks, whole_completion
from service.store.records import Moment
from tests.service.workers.test_dispatcher import INFO

STARTED = CompletionStarted(id="chatcmpl_1", created_at=1.0, model=INFO)
MOMENT = Moment(video_id="vid_1", start=2.0, end=3.0, text_start=0, text_end=13)


async def events(moments: tuple[Moment, ...] | None) -> AsyncGenerator[CompletionEvent, None]:
    yield ChoiceOutput(index=0, text="From 10 to", logprobs=(), finish_reason=None)
    yield ChoiceOutput(index=0, text=" 14.", logprobs=(), finish_reason="stop", moments=moments)
    yield CompletionEnded(num_prompt_tokens=5, num_completion_tokens=4, num_cached_tokens=0, num_video_tokens=0)


@pytest.mark.parametrize(
    ("moments", "shown"), [(None, None), ((), []), ((MOMENT,), [MOMENT.model_dump()])], ids=["no axis", "none", "one"]
)
async def test_a_whole_completion_has_the_moments_of_each_choice(
    moments: tuple[Moment, ...] | None, shown: list[Any] | None
) -> None:
    completion = await whole_completion(STARTED, events(moments), with_logprobs=False)
    assert completion.model_dump(mode="json")["choices"][0]["moments"] == shown


@pytest.mark.parametrize(("moments", "shown"), [(None, None), ((MOMENT,), [MOMENT.model_dump()])])
async def test_a_stream_has_the_moments_in_the_chunk_that_ends_the_choice(
    moments: tuple[Moment, ...] | None, shown: list[Any] | None
) -> None:
    content = StreamContent(usage=False, logprobs=False)
    *chunks, done = [data async for data in completion_chunks(STARTED, events(moments), num_choices=1, content=content)]
    assert done == b"[DONE]"
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert [choice.get("moments") for choice in choices] == [None, None, shown]
    assert choices[-1]["finish_reason"] == "stop"
    assert ("moments" in choices[-1]) == (shown is not None)
