"""Translates OpenAI's chat completion requests into the service's own."""

import base64
import binascii
import re
from collections.abc import Sequence

from model.engine.sampling_params import MAX_SEED
from model.text.conversation import Turn
from service.answers.completion_request import CompletionRequest, InlineVideo, RemoteVideo, UploadedVideo, VideoSource
from service.answers.question import Question
from service.answers.sampling import SamplingFields, SamplingRequest
from service.api.chat_completion_schemas import (
    ChatCompletionRequest,
    ChatMessage,
    FilePart,
    SystemMessage,
    TextPart,
    UserMessage,
    VideoUrlPart,
)
from service.errors import InvalidRequest, NotFound
from service.ids import video_id_of

_DATA_URL = re.compile(r"data:([\w.+/-]*)((?:;[\w.=+\"-]*)*?)(;base64)?,", re.IGNORECASE)


def completion_request(body: ChatCompletionRequest) -> CompletionRequest:
    """Translate a request; decodes inline videos, so it is slow for large bodies.

    Raises:
        InvalidRequest: fields that exclude each other, no question, or a malformed video.
        NotFound: an id that no video can have.
    """
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequest(
            "invalid_value", "Give either `max_completion_tokens` or `max_tokens`.", param="max_tokens"
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("invalid_value", "`top_logprobs` needs `logprobs`.", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("invalid_value", "`stream_options` needs `stream`.", param="stream_options")
    last = body.messages[-1]
    text = _text(last)
    if not isinstance(last, UserMessage) or not text:
        raise InvalidRequest(
            "missing_question",
            "The last message must come from the user and contain text.",
            param=f"messages.{len(body.messages) - 1}",
        )
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
    """The turns before the question. A message without text, which only shows a video, is not a turn."""
    texts = [(message, _text(message)) for message in messages if not isinstance(message, SystemMessage)]
    return [Turn(role=message.role, text=text) for message, text in texts if text]


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
        return _video_at(part.video_url.url, param=f"{param}.video_url.url")
    file, param = part.file, f"{param}.file"
    if (file.file_id is None) == (file.file_data is None):
        raise InvalidRequest("invalid_value", "Give either `file_id` or `file_data`.", param=param)
    if file.file_data is not None:
        return _inline_video(file.file_data, filename=file.filename, param=f"{param}.file_data")
    return _uploaded_video(file.file_id or "", param=f"{param}.file_id")


def _video_at(url: str, *, param: str) -> VideoSource:
    scheme = url[:6].lower()
    if scheme.startswith("data:"):
        return _inline_video(url, filename=None, param=param)
    if scheme.startswith(("vid_", "file-")):
        return _uploaded_video(url, param=param)
    if url[:8].lower() == "https://":
        return RemoteVideo(url=url, param=param)
    raise InvalidRequest(
        "invalid_url", "A video is given as a `data:` URL, an `https:` URL, or the id of an upload.", param=param
    )


def _uploaded_video(name: str, *, param: str) -> UploadedVideo:
    video_id = video_id_of(name)
    if video_id is None:
        raise NotFound("video_not_found", "There is no video with this id.", param=param)
    return UploadedVideo(video_id=video_id, param=param)


def _inline_video(url: str, *, filename: str | None, param: str) -> InlineVideo:
    head = _DATA_URL.match(url)
    if head is None or head[3] is None:
        raise InvalidRequest("malformed_data_url", "Send the file as `data:video/mp4;base64,…`.", param=param)
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("malformed_data_url", "The data in the URL is not base64.", param=param) from None
    kind = head[1].lower()
    return InlineVideo(
        data=data,
        content_type=kind if kind.startswith("video/") else "application/octet-stream",
        filename=filename,
        param=param,
    )
