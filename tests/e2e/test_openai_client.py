"""OpenAI's Python client works unchanged, including types, streams, retries and errors."""

import base64
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionTokenLogprob

from service.commands.demo import SAMPLE
from tests.clips import h264_mp4
from tests.e2e.test_tenants import make_key
from tests.running import RunningService, eventually, running
from tests.talkative import talkative_checkpoint

ANSWER = "There are two objects."


def client_of(service: RunningService, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", **{"api_key": "any", "max_retries": 0, **options})


@pytest.fixture
def client(service: RunningService) -> Iterator[openai.OpenAI]:
    with client_of(service) as client:
        yield client


def about(*urls: str, text: str = "How many objects are there?") -> list[Any]:
    videos = [{"type": "video_url", "video_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*videos, {"type": "text", "text": text}]}]


def data_url(path: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def asked(client: openai.OpenAI, messages: list[Any], **fields: Any) -> ChatCompletion:
    completion = client.chat.completions.create(model="tiny", messages=messages, **fields)
    assert isinstance(completion, ChatCompletion)
    return completion


def ask(service: RunningService, video_id: str, **fields: Any) -> str:
    content: str = service.ask(service.open_session(video_id), "How many objects are there?", **fields)["content"]
    return content


def test_the_model_is_found_by_its_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_a_file_is_uploaded_asked_about_in_a_stream_and_erased(client: openai.OpenAI) -> None:
    file = client.files.create(file=SAMPLE, purpose="user_data")
    assert (file.object, file.filename, file.bytes) == ("file", SAMPLE.name, SAMPLE.stat().st_size)
    assert client.files.wait_for_processing(file.id, poll_interval=0.1).status == "processed"
    assert file.id in [each.id for each in client.files.list(purpose="user_data", limit=1)]
    assert client.files.content(file.id).read() == SAMPLE.read_bytes()

    content = [
        {"type": "file", "file": {"file_id": file.id}},
        {"type": "text", "text": "How many objects are there?"},
    ]
    messages: Any = [{"role": "user", "content": content}]
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    assert all(isinstance(chunk, ChatCompletionChunk) for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1
    *deltas, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in deltas) == ANSWER
    assert (deltas[0].choices[0].delta.role, deltas[-1].choices[0].finish_reason) == ("assistant", "stop")
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.prompt_tokens_details is not None
    assert last.usage.prompt_tokens_details.to_dict()["video_tokens"] == 96
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens

    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError) as refused:
        asked(client, messages)
    assert refused.value.param == "messages.0.content.0.file.file_id"


def test_every_chunk_of_a_plain_stream_has_a_choice(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="tiny", messages=about(data_url(SAMPLE)), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER


def test_the_second_turn_reuses_the_cached_prefix_of_the_first(client: openai.OpenAI) -> None:
    messages = about(data_url(SAMPLE), text="Which way does the circle move?")
    first = asked(client, messages, temperature=0)
    assert first.choices[0].message.content == "The red circle moves right."
    messages += [first.choices[0].message.to_dict(), {"role": "user", "content": "What colour is it?"}]
    second = asked(client, messages, temperature=0)
    assert second.choices[0].message.content == "The circle is red."
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert 96 <= (second.usage.prompt_tokens_details.cached_tokens or 0) < second.usage.prompt_tokens


def test_completions_give_the_same_text_as_sessions(
    service: RunningService, client: openai.OpenAI, tmp_path: Path
) -> None:
    """By id and inline, streamed and whole, greedy and sampled with a seed."""
    path = h264_mp4(tmp_path / "same.mp4", frames=40)
    video_id = service.upload(path)["id"]
    for sampling in ({"temperature": 0}, {"temperature": 1.5, "seed": 7}):
        expected = ask(service, video_id, max_tokens=8, **sampling)
        for url in (video_id, data_url(path), video_id.replace("vid_", "file-")):
            whole = asked(client, about(url), max_completion_tokens=8, **sampling)
            assert whole.choices[0].message.content == expected
            assert whole.to_dict()["videos"][0]["video_id"] == video_id  # type: ignore[index]
        stream = client.chat.completions.create(
            model="tiny", messages=about(video_id), max_tokens=8, stream=True, **sampling
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected


def test_two_videos_are_encoded_in_their_order_in_the_message(client: openai.OpenAI, service: RunningService) -> None:
    other = SAMPLE.with_name("arrival.mp4")
    both = asked(client, about(data_url(SAMPLE), data_url(other)), temperature=0)
    assert both.usage is not None
    assert both.usage.prompt_tokens_details is not None
    assert both.usage.prompt_tokens_details.to_dict()["video_tokens"] == 2 * 96
    ids = [video["video_id"] for video in both.to_dict()["videos"]]  # type: ignore[attr-defined]
    assert ids == [service.upload(SAMPLE)["id"], service.upload(other)["id"]]


def test_n_choices_are_returned_and_the_first_equals_a_single_one(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"temperature": 4, "seed": 11, "max_tokens": 12}
    alone = asked(client, about(data_url(SAMPLE)), **fields)
    many = asked(client, about(data_url(SAMPLE)), n=3, **fields)
    texts = [choice.message.content for choice in many.choices]
    assert [choice.index for choice in many.choices] == [0, 1, 2]
    assert texts[0] == alone.choices[0].message.content
    assert len(set(texts)) == 3
    assert alone.usage is not None
    assert many.usage is not None
    assert many.usage.prompt_tokens == alone.usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_match_the_tokens_of_the_text(client: openai.OpenAI, stream: bool) -> None:
    fields: dict[str, Any] = {"temperature": 0, "logprobs": True, "top_logprobs": 3, "stop": [" objects"]}
    tokens: list[ChatCompletionTokenLogprob] = []
    text = ""
    if stream:
        for chunk in client.chat.completions.create(
            model="tiny", messages=about(data_url(SAMPLE)), stream=True, **fields
        ):
            [choice] = chunk.choices
            text += choice.delta.content or ""
            tokens += (choice.logprobs.content or []) if choice.logprobs else []
    else:
        [whole] = asked(client, about(data_url(SAMPLE)), **fields).choices
        assert whole.logprobs is not None
        text, tokens = whole.message.content or "", whole.logprobs.content or []
    assert text == "There are two"
    assert b"".join(bytes(token.bytes or ()) for token in tokens).decode().strip() == text
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob <= 0, "greedy takes the likeliest"
        assert token.token == bytes(token.bytes or ()).decode()


def test_an_answer_at_the_token_limit_has_the_finish_reason_length(client: openai.OpenAI) -> None:
    [choice] = asked(client, about(data_url(SAMPLE)), max_completion_tokens=2, temperature=0).choices
    assert (choice.finish_reason, choice.message.content) == ("length", "There are")


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_value"),
    ({"response_format": {"type": "json_object"}}, "response_format.type", "unsupported_value"),
    ({"logit_bias": {"1": 2}}, "logit_bias", "unsupported_value"),
    ({"store": True}, "store", "unsupported_value"),
    ({"user": "me"}, "user", "unsupported_value"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_value"),
    ({"extra_body": {"best_of": 2}}, "best_of", "unknown_field"),
    ({"temperature": 9}, "temperature", "invalid_value"),
    ({"n": 9}, "n", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"max_tokens": 2, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"messages": [{"role": "user", "content": "x " * 3000}]}, "messages", "context_length_exceeded"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0", "invalid_value"),
    ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages.0.name", "unsupported_value"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages.0", "missing_question"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content.0",
        "invalid_value",
    ),
    ({"messages": about("https://example.org/a.mp4")}, "messages.0.content.0.video_url.url", "fetch_disabled"),
    ({"messages": about("file:///etc/passwd")}, "messages.0.content.0.video_url.url", "invalid_url"),
    ({"messages": about("data:video/mp4;base64,@@@@")}, "messages.0.content.0.video_url.url", "malformed_data_url"),
    ({"messages": about("data:video/mp4;base64,aGVsbG8=")}, "messages.0.content.0.video_url.url", "not_a_video"),
    ({"messages": about(f"vid_{'0' * 32}")}, "messages.0.content.0.video_url.url", "video_not_found"),
    ({"messages": about(*[f"vid_{i:032x}" for i in range(5)])}, "messages", "too_many_videos"),
]


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED, ids=lambda value: str(value)[:40])
def test_an_unsupported_field_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        asked(client, **{"messages": [{"role": "user", "content": "Hello"}], **fields})
    assert (refused.value.param, refused.value.code) == (param, code)
    assert refused.value.status_code in {403, 404, 415, 422}


@pytest.mark.parametrize("purpose", ["fine-tune", "batch"])
def test_a_file_for_another_purpose_is_refused_and_not_stored(client: openai.OpenAI, purpose: Any) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.files.create(file=("a.mp4", b"x"), purpose=purpose)
    assert (refused.value.param, refused.value.code) == ("purpose", "invalid_value")


def test_files_are_listed_page_by_page_in_either_order(
    client: openai.OpenAI, service: RunningService, tmp_path: Path
) -> None:
    made = [
        client.files.create(file=h264_mp4(tmp_path / f"{i}.mp4", frames=20 + i), purpose="user_data").id
        for i in range(3)
    ]
    newest = [file.id for file in client.files.list(limit=2)]
    oldest = [file.id for file in client.files.list(limit=2, order="asc")]
    assert newest[:3] == made[::-1]
    assert oldest == newest[::-1]
    assert list(client.files.list(purpose="batch")) == []
    for file_id in made:
        client.files.delete(file_id)


@pytest.mark.parametrize("stream", [False, True])
def test_a_sequence_ends_when_its_client_disconnects(talkative: RunningService, stream: bool, tmp_path: Path) -> None:
    """There is no grace period, because a completion cannot be resumed."""
    model = talkative.client.get("/v1/models").json()["data"][0]["id"]
    messages: Any = [{"role": "user", "content": "Hello"}]
    fields: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": 1800}
    client = client_of(talkative)

    def ask_whole() -> None:
        with pytest.raises(openai.APIConnectionError):
            client.with_options(timeout=1.0).chat.completions.create(**fields)

    if stream:
        answer = client.chat.completions.create(stream=True, **fields)
        assert [next(answer).object for _ in range(3)]
        answer.close()
    else:
        asking = threading.Thread(target=ask_whole)
        asking.start()
        eventually(lambda: talkative.metric("reeltalk_num_requests_running") == 1)
        asking.join()
    left = time.monotonic()
    eventually(lambda: talkative.metric("reeltalk_num_requests_running") == 0, timeout=5)
    assert time.monotonic() - left < 1.0, "as long as a step, and not as a grace period"
    client.close()


def test_a_stream_continues_after_its_worker_was_killed(talkative: RunningService) -> None:
    fields: dict[str, Any] = {"model": "checkpoint", "temperature": 0, "max_tokens": 300, "logprobs": True}
    messages: Any = [{"role": "user", "content": "Go on."}]
    with client_of(talkative) as client:
        whole = client.chat.completions.create(messages=messages, **fields)
        stream = client.chat.completions.create(messages=messages, stream=True, **fields)
        text, num_tokens = "", 0
        for number, chunk in enumerate(stream):
            if number == 20:
                os.kill(talkative.child("service.workers"), signal.SIGKILL)
            [choice] = chunk.choices
            text += choice.delta.content or ""
            num_tokens += len(choice.logprobs.content or []) if choice.logprobs else 0
    assert text == whole.choices[0].message.content
    assert whole.choices[0].logprobs is not None
    assert num_tokens == len(whole.choices[0].logprobs.content or [])


def test_the_retries_of_the_client_wait_for_retry_after(tmp_path: Path) -> None:
    checkpoint = talkative_checkpoint(tmp_path / "checkpoint")
    with (
        running(tmp_path / "data", "--checkpoint", str(checkpoint), REELTALK_MAX_PENDING_ANSWERS="1") as service,
        client_of(service) as hasty,
        client_of(service, max_retries=4) as patient,
    ):
        fields: dict[str, Any] = {"model": "checkpoint", "messages": [{"role": "user", "content": "Hello"}]}
        busy = hasty.chat.completions.create(stream=True, max_tokens=1800, **fields)
        next(busy)
        with pytest.raises(openai.InternalServerError) as refused:
            hasty.chat.completions.create(max_tokens=2, **fields)
        assert (refused.value.status_code, refused.value.code) == (503, "overloaded")
        assert refused.value.response.headers["retry-after"] == "2"

        began = time.monotonic()
        threading.Timer(1.0, busy.close).start()
        reply = patient.chat.completions.create(max_tokens=2, **fields)
        assert reply.choices[0].finish_reason == "length"
        assert time.monotonic() - began >= 2.0, "as in Retry-After"
        with pytest.raises(openai.InternalServerError):
            hasty.chat.completions.create(n=2, max_tokens=2, **fields)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with long answers that requires an API key."""
    folder = tmp_path_factory.mktemp("keyed")
    checkpoint = talkative_checkpoint(folder / "checkpoint")
    make_key(folder / "data", "first", "--tenant", "other")
    with running(folder / "data", "--checkpoint", str(checkpoint), REELTALK_DISCONNECT_GRACE="1") as service:
        yield service


HELLO: dict[str, Any] = {"model": "checkpoint", "messages": [{"role": "user", "content": "Hello"}]}


def test_without_a_key_every_call_is_an_authentication_error(keyed: RunningService) -> None:
    with client_of(keyed) as stranger:
        for call in (
            stranger.models.list,
            stranger.files.list,
            lambda: stranger.files.create(file=SAMPLE, purpose="user_data"),
            lambda: stranger.chat.completions.create(**HELLO),
            lambda: stranger.chat.completions.create(stream=True, **HELLO),
        ):
            with pytest.raises(openai.AuthenticationError) as refused:
                call()
            assert (refused.value.code, refused.value.type) == ("invalid_key", "authentication_error")


def test_a_key_is_limited_in_answers_with_retry_after(keyed: RunningService) -> None:
    _, token = make_key(keyed.data_dir, "two", "--concurrent-answers", "2")
    with client_of(keyed, api_key=token) as client:
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(n=3, max_tokens=2, **HELLO)
        assert refused.value.code == "too_many_answers"
        with client.chat.completions.create(n=2, stream=True, max_tokens=1800, **HELLO) as busy:
            next(busy)
            with pytest.raises(openai.RateLimitError) as refused:
                client.chat.completions.create(max_tokens=2, **HELLO)
            assert int(refused.value.response.headers["retry-after"]) >= 1
        patient = client.with_options(max_retries=4)
        assert patient.chat.completions.create(n=2, max_tokens=2, **HELLO).choices[1].finish_reason == "length"


def test_a_key_is_limited_in_requests(keyed: RunningService) -> None:
    _, token = make_key(keyed.data_dir, "eager", "--requests-per-minute", "2")
    with client_of(keyed, api_key=token) as client:
        assert [client.models.list().data[0].id for _ in range(2)] == ["checkpoint"] * 2
        with pytest.raises(openai.RateLimitError) as refused:
            client.models.list()
    assert (refused.value.code, refused.value.type) == ("too_many_requests", "rate_limit_error")
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 30


def test_a_file_beyond_the_key_s_limit_is_not_stored_by_any_route(keyed: RunningService) -> None:
    _, token = make_key(keyed.data_dir, "small", "--tenant", "small", "--stored-bytes", "1000")
    with client_of(keyed, api_key=token) as client:
        with pytest.raises(openai.RateLimitError) as refused:
            client.files.create(file=SAMPLE, purpose="user_data")
        assert refused.value.code == "storage_full"
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model="checkpoint", messages=about(data_url(SAMPLE)))
        assert refused.value.code == "storage_full"
        assert client.files.list().data == []


def test_an_idempotency_key_stands_for_one_file(client: openai.OpenAI, drawn: Path) -> None:
    once = {"Idempotency-Key": f"file-{time.time_ns()}"}
    first = client.files.create(file=drawn, purpose="user_data", extra_headers=once)
    assert client.files.create(file=drawn, purpose="user_data", extra_headers=once).id == first.id
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.files.create(file=SAMPLE, purpose="user_data", extra_headers=once)
    assert refused.value.code == "idempotency_key_reused"


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_ends_at_its_deadline(talkative: RunningService, stream: bool) -> None:
    began = time.monotonic()
    with client_of(talkative) as client, pytest.raises(openai.APIError) as ended:
        answer = client.chat.completions.create(max_tokens=1800, stream=stream, extra_body={"timeout": 0.7}, **HELLO)
        list(answer)
    assert ended.value.code == "deadline_exceeded"
    assert time.monotonic() - began < 4
    eventually(lambda: talkative.metric("reeltalk_num_requests_running") == 0)
