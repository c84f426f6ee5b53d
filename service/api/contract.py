"""Additions to the OpenAPI document: schemas of streamed events, examples of bodies and errors."""

from typing import Any, Literal

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.api.chat_completion_schemas import ChatCompletionChunk
from service.api.schemas import ErrorReply, Reply
from service.errors import (
    ChecksumMismatch,
    Conflict,
    Forbidden,
    Gone,
    InternalError,
    InvalidRequest,
    LimitExceeded,
    Locked,
    NotFound,
    Overloaded,
    PreconditionFailed,
    ServiceError,
    Stalled,
    TooLarge,
    Unauthenticated,
    UnsupportedMedia,
)
from service.store.records import FinishReason, Moment, Timings, Usage, VideoFrames

_VIDEO = "vid_8071dfb0043a2719636adcdc653159e8"
_REF = "#/components/schemas/{model}"


class AnswerStarted(Reply):
    """Event `answer`, the first of a stream."""

    id: str
    session_id: str


class AnswerProgress(Reply):
    """Event `progress`: how far the preparation of one of the session's videos is."""

    video_id: str
    stage: Literal["decode", "encode", "ready", "failed"]
    fraction: float


class AnswerDelta(Reply):
    """Event `delta`: the next piece of the answer's text."""

    text: str


class AnswerDone(Reply):
    """Event `done`, the last of an answer that succeeded."""

    id: str
    message_id: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    frames: tuple[VideoFrames, ...] | None
    moments: tuple[Moment, ...] | None


class VideoProgress(Reply):
    """Events `decode`, `encode` and `ready` of a video's preparation."""

    video_id: str
    fraction: float


class VideoFailed(ErrorReply):
    """Event `failed`, the last of a video that cannot be prepared."""

    video_id: str
    fraction: float


_ANSWER = (AnswerStarted, AnswerProgress, AnswerDelta, AnswerDone, ErrorReply)
_PREPARATION = (VideoProgress, VideoFailed, ErrorReply)
_COMPLETION = (ChatCompletionChunk, ErrorReply)
_STREAMS: dict[tuple[str, str], tuple[type[Reply], ...]] = {
    ("/v1/videos/{video_id}/events", "get"): _PREPARATION,
    ("/v1/sessions/{session_id}/messages", "post"): _ANSWER,
    ("/v1/answers/{answer_id}/events", "get"): _ANSWER,
    ("/v1/chat/completions", "post"): _COMPLETION,
}
_BODIES: dict[str, object] = {
    "SessionRequest": {"video_ids": [_VIDEO], "frames": {"count": 4}},
    "MessageRequest": {"content": "What happens in the video?", "stream": True, "max_tokens": 64},
    "ChatCompletionRequest": {
        "model": "tiny",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "video_url", "video_url": {"url": _VIDEO}},
                    {"type": "text", "text": "How many objects are there?"},
                ],
            }
        ],
    },
}
_ERRORS: tuple[ServiceError, ...] = (
    Unauthenticated("missing_key", "Send an API key in the header `Authorization: Bearer …`."),
    Forbidden("missing_scope", "This key does not have the scope `use`."),
    NotFound("video_not_found", "There is no video with this id.", param="video_id"),
    Stalled("upload_stalled", "Nothing was received for 30 seconds."),
    Conflict("session_busy", "This session's last question is still being answered."),
    Gone("video_gone", "The video's file is gone; upload it again.", param="video_id"),
    PreconditionFailed("unsupported_version", "Send `Tus-Resumable: 1.0.0` with every request.", param="Tus-Resumable"),
    TooLarge("upload_too_large", "An upload may have at most 2147483648 bytes.", param="file"),
    UnsupportedMedia("not_a_video", "The file is not a video of a known kind.", param="file"),
    InvalidRequest("invalid_value", "Input should be greater than or equal to 1.", param="max_tokens"),
    Locked("upload_busy", "Another request is adding to this upload; read its offset again in a moment."),
    LimitExceeded("too_many_answers", "This key may have 16 answers running or waiting."),
    ChecksumMismatch("checksum_mismatch", "The bytes do not have this checksum.", param="Upload-Checksum"),
    InternalError("internal_error", "Something went wrong on our side."),
    Overloaded("overloaded", "Too many answers are being given; try again in a moment."),
)


def describe_contract(app: FastAPI) -> None:
    """Add all of this to the app's OpenAPI document."""
    document_of_routes = app.openapi
    is_complete = False

    def complete_document() -> dict[str, Any]:
        nonlocal is_complete
        document = document_of_routes()
        if not is_complete:
            _complete(document)
            is_complete = True
        return document

    app.openapi = complete_document  # type: ignore[method-assign]


def _complete(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    models = list(dict.fromkeys(model for events in _STREAMS.values() for model in events))
    _, defined = models_json_schema([(model, "serialization") for model in models], ref_template=_REF)
    for name, schema in defined["$defs"].items():
        schemas.setdefault(name, schema)
    for name, example in _BODIES.items():
        schemas[name]["examples"] = [example]
    for (path, method), events in _STREAMS.items():
        content = document["paths"][path][method]["responses"]["200"]["content"]
        content["text/event-stream"] = {"schema": _stream_of(events)}
    examples = {str(error.status): error.envelope() for error in _ERRORS}
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                reply = response.get("content", {}).get("application/json", {})
                if reply.get("schema", {}).get("$ref", "").endswith("/ErrorReply") and status in examples:
                    reply["example"] = examples[status]


def _stream_of(events: tuple[type[Reply], ...]) -> dict[str, object]:
    """The schema of a stream of Server-Sent Events whose data are these documents, as JSON."""
    documents = [{"$ref": _REF.format(model=event.__name__)} for event in events]
    return {"type": "string", "contentMediaType": "text/event-stream", "contentSchema": {"anyOf": documents}}
