"""Every error a client can meet: class -> HTTP status and type, in one place, in one envelope for JSON and SSE.

ServiceError
|-- InvalidRequest    422   fields, prompts and videos that cannot be used
|-- Unauthenticated   401   asks for a key
|-- Forbidden         403
|-- NotFound          404
|-- Stalled           408
|-- Conflict          409
|-- Gone              410
|-- PreconditionFailed 412  another version of a protocol
|-- TooLarge          413
|-- UnsupportedMedia  415
|-- Locked            423   somebody else is at it; carries Retry-After
|-- ChecksumMismatch  460   tus' own status
|-- LimitExceeded     429   the caller's own limit; carries Retry-After
|-- Overloaded        503   our capacity; carries Retry-After
|-- Unavailable       503   something of ours is missing; carries Retry-After
`-- InternalError     500   never carries the text of an unexpected exception
"""

from typing import ClassVar


class ServiceError(Exception):
    """An error with a code that programs read, a sentence that people read, and a place in HTTP."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    retry_after: ClassVar[int | None] = None

    def __init__(self, code: str, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self._retry_after = self.retry_after if retry_after is None else retry_after

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """The body of the HTTP response and the data of an SSE `error` event."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """The headers that the HTTP response needs besides."""
        return {} if self._retry_after is None else {"Retry-After": str(self._retry_after)}


class InvalidRequest(ServiceError):
    """What was sent is understood and cannot be used."""

    status = 422
    type = "invalid_request_error"


class Unauthenticated(ServiceError):
    """Nobody knows who asks."""

    status = 401
    type = "authentication_error"

    def headers(self) -> dict[str, str]:
        """How to say who asks."""
        return {"WWW-Authenticate": 'Bearer realm="reeltalk"'}


class Forbidden(ServiceError):
    """Whoever asks may not."""

    status = 403
    type = "permission_error"


class Stalled(ServiceError):
    """The client stopped in the middle of what it was sending."""

    status = 408
    type = "invalid_request_error"


class NotFound(ServiceError):
    """No such thing, or none that the caller may see."""

    status = 404
    type = "not_found_error"


class Conflict(ServiceError):
    """The thing exists and is busy or in another state."""

    status = 409
    type = "conflict_error"


class Gone(ServiceError):
    """It was here and is no more."""

    status = 410
    type = "gone_error"


class TooLarge(ServiceError):
    """More bytes than this server takes."""

    status = 413
    type = "invalid_request_error"


class UnsupportedMedia(ServiceError):
    """Not a video, or not one this server opens."""

    status = 415
    type = "invalid_request_error"


class PreconditionFailed(ServiceError):
    """The client speaks another version of a protocol."""

    status = 412
    type = "invalid_request_error"


class Locked(ServiceError):
    """Another request is at work on the same thing."""

    status = 423
    type = "conflict_error"
    retry_after = 1


class ChecksumMismatch(ServiceError):
    """What arrived is not what was sent, by the client's own checksum."""

    status = 460
    type = "invalid_request_error"


class LimitExceeded(ServiceError):
    """A limit of the caller's own key; others are served."""

    status = 429
    type = "rate_limit_error"
    retry_after = 1


class Overloaded(ServiceError):
    """Our capacity is used up; the same request may succeed a little later."""

    status = 503
    type = "overloaded_error"
    retry_after = 2


class Unavailable(ServiceError):
    """A part of the service is missing: the store, the model."""

    status = 503
    type = "unavailable_error"
    retry_after = 1


class InternalError(ServiceError):
    """Our fault. The log has the details; the client gets a code."""


_UNSUPPORTED_MEDIA = {"not_a_video", "no_video_stream", "unsupported_codec"}
_BAD_FILE = ("undecodable", "no_frames", "too_large", "too_long", "decode_crashed", "decode_timeout")
_PARAMS = {
    "context_length_exceeded": "content",
    "empty_interval": "frames",
    **dict.fromkeys(_BAD_FILE, "file"),
}
_INTERNAL = {
    "worker_lost",
    "encode_failed",
    "engine_error",
    "answer_lost",
    "internal_error",
}


def from_code(code: str, message: str) -> ServiceError:
    """The error that a code from a decode child, a worker or a stored record stands for."""
    if code in _UNSUPPORTED_MEDIA:
        return UnsupportedMedia(code, message, param="file")
    if code in _INTERNAL:
        return InternalError(code, message)
    if code in {"store_unavailable", "media_unavailable", "model_unavailable", "decode_unavailable"}:
        return Unavailable(code, message)
    if code == "video_gone":
        return Gone(code, message, param="video_ids")
    if code == "deadline_exceeded":
        return Overloaded(code, message)
    return InvalidRequest(code, message, param=_PARAMS.get(code))
