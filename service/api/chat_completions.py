"""`/v1/chat/completions`: the questions of OpenAI's clients, whole conversations at a time."""

import asyncio
import base64
import binascii
import contextlib
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from model.engine.sampling_params import MAX_SEED
from model.text.conversation import Turn
from service.answers.completion_request import CompletionRequest, InlineVideo, RemoteVideo, UploadedVideo, VideoSource
from service.answers.completions import ChoiceOutput, CompletionEnded, CompletionEvent, CompletionStarted, FramesSampled
from service.answers.question import Question
from service.answers.sampling import SamplingFields, SamplingRequest
from service.api.dependencies import CallerDep, ServiceDep
from service.api.disconnects import unless_disconnected
from service.api.errors import documented
from service.api.openai_schemas import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatMessage,
    Choice,
    ChoiceDelta,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionUsage,
    FilePart,
    PromptTokensDetails,
    SystemMessage,
    TextPart,
    TokenLogprob,
    TopLogprob,
    UserMessage,
    VideoUrlPart,
)
from service.api.sse import data_stream
from service.errors import InvalidRequest, NotFound
from service.ids import video_id_of
from service.store.records import VideoFrames
from service.workers.protocol import LikelyToken, TokenLogprobs

router = APIRouter(prefix="/v1/chat", tags=["OpenAI"])

_DATA_URL = re.compile(r"data:([\w.+/-]*)((?:;[\w.=+\"-]*)*?)(;base64)?,", re.IGNORECASE)
_LEAST_LOGPROB = -9999.0  # OpenAI's word for "never"; JSON has no infinity
_REPLY: dict[int | str, dict[str, object]] = {
    200: {
        "description": "The whole completion, or with `stream` a stream: `ChatCompletionChunk`s as the data of events "
        "without a name, an error as the document of all errors, `[DONE]` at last.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.post(
    "/completions",
    response_model=ChatCompletion,
    responses=_REPLY | documented(404, 410, 413, 415, 422, 500, 503),
)
async def complete(
    request: Request, service: ServiceDep, caller: CallerDep, body: ChatCompletionRequest
) -> StreamingResponse | ChatCompletion:
    """Go on with a conversation about videos, as OpenAI's clients ask for it. Nothing but the videos is kept."""
    events = service.completions.run(caller, await asyncio.to_thread(_asked, body))
    started = await anext(events)  # so that every refusal is an ordinary reply
    assert isinstance(started, CompletionStarted)
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        chunks = _chunks(started, events, num_choices=body.n or 1, wants=_Wants(include_usage, bool(body.logprobs)))
        return data_stream(chunks)
    return await unless_disconnected(request, _whole(started, events, with_logprobs=bool(body.logprobs)))


# -- what was asked


def _asked(body: ChatCompletionRequest) -> CompletionRequest:
    """What the request means.

    Raises:
        InvalidRequest: fields that do not go together, or a video that is not given properly.
    """
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequest("invalid_value", "Give `max_completion_tokens` or `max_tokens`.", param="max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("invalid_value", "`top_logprobs` needs `logprobs`.", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("invalid_value", "`stream_options` needs `stream`.", param="stream_options")
    last = body.messages[-1]
    text = _text(last)
    if not isinstance(last, UserMessage) or not text:
        where = f"messages.{len(body.messages) - 1}"
        raise InvalidRequest("missing_question", "The last message is a question of the user's.", param=where)
    return CompletionRequest(
        model=body.model,
        videos=tuple(_videos(body.messages)),
        history=tuple(_turns(body.messages[:-1])),
        question=_question(body, text),
        system="\n".join(_text(message) for message in body.messages if isinstance(message, SystemMessage)),
        num_choices=body.n or 1,
    )


def _question(body: ChatCompletionRequest, text: str) -> Question:
    fields = body.model_dump(include=set(SamplingFields.model_fields), exclude={"max_tokens", "seed"})
    return Question(
        content=text,
        sampling=SamplingRequest(
            **fields,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            seed=None if body.seed is None else body.seed & MAX_SEED,  # OpenAI's may be negative
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ),
        timeout=body.timeout,
    )


def _turns(messages: Sequence[ChatMessage]) -> list[Turn]:
    """What was said before; a message that only shows a video says nothing."""
    said = [(message, _text(message)) for message in messages if not isinstance(message, SystemMessage)]
    return [Turn(role=message.role, text=text) for message, text in said if text]


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))


def _videos(messages: Sequence[ChatMessage]) -> list[VideoSource]:
    """The videos of all messages, in order."""
    return [
        _video(part, param=f"messages.{i}.content.{j}")
        for i, message in enumerate(messages)
        if isinstance(message, UserMessage) and not isinstance(message.content, str)
        for j, part in enumerate(message.content)
        if not isinstance(part, TextPart)
    ]


def _video(part: VideoUrlPart | FilePart, *, param: str) -> VideoSource:
    if isinstance(part, VideoUrlPart):
        return _at(part.video_url.url, param=f"{param}.video_url.url")
    file, param = part.file, f"{param}.file"
    if (file.file_id is None) == (file.file_data is None):
        raise InvalidRequest("invalid_value", "A file is given by `file_id` or by `file_data`.", param=param)
    if file.file_data is not None:
        return _inline(file.file_data, filename=file.filename, param=f"{param}.file_data")
    return _uploaded(file.file_id or "", param=f"{param}.file_id")


def _at(url: str, *, param: str) -> VideoSource:
    scheme = url[:6].lower()
    if scheme.startswith("data:"):
        return _inline(url, filename=None, param=param)
    if scheme.startswith(("vid_", "file-")):
        return _uploaded(url, param=param)
    if url[:8].lower() == "https://":
        return RemoteVideo(url=url, param=param)
    raise InvalidRequest("invalid_url", "A video is a `data:` or `https:` URL or the id of an upload.", param=param)


def _uploaded(name: str, *, param: str) -> UploadedVideo:
    video_id = video_id_of(name)
    if video_id is None:
        raise NotFound("video_not_found", "There is no video with this id.", param=param)
    return UploadedVideo(video_id=video_id, param=param)


def _inline(url: str, *, filename: str | None, param: str) -> InlineVideo:
    head = _DATA_URL.match(url)
    if head is None or head[3] is None:
        raise InvalidRequest("malformed_data_url", "Send the file as `data:video/mp4;base64,…`.", param=param)
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("malformed_data_url", "The data of the URL is not base64.", param=param) from None
    kind = head[1].lower()
    return InlineVideo(
        data=data,
        content_type=kind if kind.startswith("video/") else "application/octet-stream",
        filename=filename,
        param=param,
    )


# -- what is answered


@dataclass(frozen=True, slots=True)
class _Wants:
    usage: bool
    logprobs: bool


@dataclass(slots=True)
class _Heard:
    """One choice as it is put together."""

    text: list[str] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "stop"


async def _whole(
    started: CompletionStarted, events: AsyncGenerator[CompletionEvent, None], *, with_logprobs: bool
) -> ChatCompletion:
    heard: dict[int, _Heard] = {}
    videos: list[VideoFrames] = []
    usage = None
    async with contextlib.aclosing(events):
        async for event in events:
            match event:
                case FramesSampled():
                    videos = list(event.videos)
                case ChoiceOutput():
                    choice = heard.setdefault(event.index, _Heard())
                    choice.text.append(event.text)
                    choice.tokens += map(_token, event.logprobs)
                    choice.finish_reason = _reason(event.finish_reason) or choice.finish_reason
                case CompletionEnded():
                    usage = _usage(event)
    assert usage is not None
    return ChatCompletion(
        id=started.id,
        created=int(started.created_at),
        model=started.model.name,
        system_fingerprint=_fingerprint(started),
        choices=[
            Choice(
                index=index,
                message=AnswerMessage(content="".join(choice.text)),
                finish_reason=choice.finish_reason,
                logprobs=ChoiceLogprobs(content=choice.tokens) if with_logprobs else None,
            )
            for index, choice in sorted(heard.items())
        ],
        usage=usage,
        videos=videos,
    )


async def _chunks(
    started: CompletionStarted, events: AsyncGenerator[CompletionEvent, None], *, num_choices: int, wants: _Wants
) -> AsyncGenerator[bytes, None]:
    """The stream's events as JSON."""

    def chunk(*choices: ChunkChoice, **fields: Any) -> bytes:
        made = ChatCompletionChunk(
            id=started.id,
            object="chat.completion.chunk",
            created=int(started.created_at),
            model=started.model.name,
            system_fingerprint=_fingerprint(started),
            choices=list(choices),
            **fields,
        )
        return made.model_dump_json(exclude_unset=True).encode()

    no_usage = {"usage": None} if wants.usage else {}
    for index in range(num_choices):
        opening = ChoiceDelta(role="assistant", content="")
        yield chunk(_chunk_choice(index, opening, None, None), **no_usage)
    seen: dict[str, Any] = {}  # told with the next words: clients expect a choice in every chunk
    async with contextlib.aclosing(events):
        async for event in events:
            match event:
                case FramesSampled(videos=videos) if videos:
                    seen = {"videos": list(videos)}
                case ChoiceOutput() if event.text or event.logprobs or event.finish_reason:
                    delta = ChoiceDelta(content=event.text) if event.text or not event.finish_reason else ChoiceDelta()
                    tokens = ChoiceLogprobs(content=[*map(_token, event.logprobs)]) if wants.logprobs else None
                    reason = _reason(event.finish_reason)
                    yield chunk(_chunk_choice(event.index, delta, reason, tokens), **no_usage, **seen)
                    seen = {}
                case CompletionEnded() if wants.usage:
                    yield chunk(usage=_usage(event))
    yield b"[DONE]"


def _chunk_choice(
    index: int, delta: ChoiceDelta, reason: Literal["stop", "length"] | None, logprobs: ChoiceLogprobs | None
) -> ChunkChoice:
    return ChunkChoice(index=index, delta=delta, finish_reason=reason, logprobs=logprobs)


def _reason(finish_reason: str | None) -> Literal["stop", "length"] | None:
    if finish_reason is None:
        return None
    return "length" if finish_reason == "length" else "stop"


def _usage(ended: CompletionEnded) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=ended.num_prompt_tokens,
        completion_tokens=ended.num_completion_tokens,
        total_tokens=ended.num_prompt_tokens + ended.num_completion_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=ended.num_cached_tokens, video_tokens=ended.num_video_tokens
        ),
    )


def _fingerprint(started: CompletionStarted) -> str:
    return f"fp_{started.model.checkpoint_digest[:16]}"


def _token(logprobs: TokenLogprobs) -> TokenLogprob:
    return TokenLogprob(
        **_likely(logprobs.chosen).model_dump(), top_logprobs=[_likely(token) for token in logprobs.top]
    )


def _likely(token: LikelyToken) -> TopLogprob:
    return TopLogprob(
        token=token.token.decode("utf-8", "replace"),
        bytes=list(token.token),
        logprob=max(token.logprob, _LEAST_LOGPROB),
    )
