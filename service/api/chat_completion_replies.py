"""Builds OpenAI's chat completions, whole or in chunks, from the events of a completion."""

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Literal

from service.answers.completions import ChoiceOutput, CompletionEnded, CompletionEvent, CompletionStarted, FramesSampled
from service.api.chat_completion_schemas import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceDelta,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionUsage,
    PromptTokensDetails,
    TokenLogprob,
    TopLogprob,
)
from service.store.records import Moment, VideoFrames
from service.workers.protocol import LikelyToken, TokenLogprobs

_LEAST_LOGPROB = -9999.0  # OpenAI's value for minus infinity, which JSON does not have


@dataclass(frozen=True, slots=True)
class StreamContent:
    """The optional parts of a stream."""

    usage: bool
    logprobs: bool


@dataclass(slots=True)
class _ChoiceParts:
    """The parts of one choice, collected while they arrive."""

    text: list[str] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "stop"
    moments: list[Moment] | None = None


async def whole_completion(
    started: CompletionStarted, events: AsyncGenerator[CompletionEvent, None], *, with_logprobs: bool
) -> ChatCompletion:
    """The completion, when all its choices have ended."""
    choices_by_index: dict[int, _ChoiceParts] = {}
    videos: list[VideoFrames] = []
    usage = None
    async with contextlib.aclosing(events):
        async for event in events:
            match event:
                case FramesSampled():
                    videos = list(event.videos)
                case ChoiceOutput():
                    choice = choices_by_index.setdefault(event.index, _ChoiceParts())
                    choice.text.append(event.text)
                    choice.tokens += map(_token_logprob, event.logprobs)
                    choice.finish_reason = _finish_reason(event.finish_reason) or choice.finish_reason
                    choice.moments = _moments(event)
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
                moments=choice.moments,
            )
            for index, choice in sorted(choices_by_index.items())
        ],
        usage=usage,
        videos=videos,
    )


async def completion_chunks(
    started: CompletionStarted,
    events: AsyncGenerator[CompletionEvent, None],
    *,
    num_choices: int,
    content: StreamContent,
) -> AsyncGenerator[bytes, None]:
    """The data of the stream's events: chunks as JSON, then `[DONE]`."""

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

    no_usage = {"usage": None} if content.usage else {}
    for index in range(num_choices):
        opening = ChoiceDelta(role="assistant", content="")
        yield chunk(_chunk_choice(index, opening, None, None), **no_usage)
    videos_field: dict[str, Any] = {}  # sent with the next output: clients expect a choice in every chunk
    async with contextlib.aclosing(events):
        async for event in events:
            match event:
                case FramesSampled(videos=videos) if videos:
                    videos_field = {"videos": list(videos)}
                case ChoiceOutput() if event.text or event.logprobs or event.finish_reason:
                    delta = ChoiceDelta(content=event.text) if event.text or not event.finish_reason else ChoiceDelta()
                    tokens = (
                        ChoiceLogprobs(content=[*map(_token_logprob, event.logprobs)]) if content.logprobs else None
                    )
                    reason = _finish_reason(event.finish_reason)
                    made = _chunk_choice(event.index, delta, reason, tokens, moments=_moments(event))
                    yield chunk(made, **no_usage, **videos_field)
                    videos_field = {}
                case CompletionEnded() if content.usage:
                    yield chunk(usage=_usage(event))
    yield b"[DONE]"


def _chunk_choice(
    index: int,
    delta: ChoiceDelta,
    reason: Literal["stop", "length"] | None,
    logprobs: ChoiceLogprobs | None,
    *,
    moments: list[Moment] | None = None,
) -> ChunkChoice:
    optional = {} if moments is None else {"moments": moments}
    return ChunkChoice(index=index, delta=delta, finish_reason=reason, logprobs=logprobs, **optional)


def _moments(output: ChoiceOutput) -> list[Moment] | None:
    return None if output.moments is None else list(output.moments)


def _finish_reason(finish_reason: str | None) -> Literal["stop", "length"] | None:
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


def _token_logprob(logprobs: TokenLogprobs) -> TokenLogprob:
    return TokenLogprob(
        **_top_logprob(logprobs.chosen).model_dump(), top_logprobs=[_top_logprob(token) for token in logprobs.top]
    )


def _top_logprob(token: LikelyToken) -> TopLogprob:
    return TopLogprob(
        token=token.token.decode("utf-8", "replace"),
        bytes=list(token.token),
        logprob=max(token.logprob, _LEAST_LOGPROB),
    )
