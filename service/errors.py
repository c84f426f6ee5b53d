"""Every error that a client can receive: the classes, the table of error codes, and one envelope for JSON and SSE.

ServiceError
|-- InvalidRequest    422   fields, prompts and videos that cannot be used
|-- Unauthenticated   401   a valid API key is required
|-- Forbidden         403   the caller may not do this
|-- NotFound          404   no such thing, or none that the caller may see
|-- Stalled           408   the client stopped sending
|-- Conflict          409   busy, or in another state
|-- Gone              410   existed once, was removed
|-- PreconditionFailed 412  another version of a protocol
|-- TooLarge          413   too many bytes
|-- UnsupportedMedia  415   not a video that this server can open
|-- Locked            423   another request is at work on it; carries Retry-After
|-- ChecksumMismatch  460   status defined by tus
|-- LimitExceeded     429   the caller's own limit; carries Retry-After
|-- Overloaded        503   no capacity left; carries Retry-After
|-- InsufficientMemory 507  a model does not fit on its device
|-- Unavailable       503   a part of the service is missing; carries Retry-After
|   `-- StorageUnavailable 503 Redis or the bucket is missing; carries Retry-After
`-- InternalError     500   never carries the text of an unexpected exception

`CODES` has a row for each code. An error cannot be made with a code that is not in the table, or by another class than
the one in its row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Fault(StrEnum):
    """What has to change before the same request can succeed."""

    CLIENT = "client"
    """The request, the file, or how much the client asks for."""
    SERVER = "server"
    """The service: a defect, or a part of it that is down."""
    CAPACITY = "capacity"
    """The load on the service."""


class ServiceError(Exception):
    """An error with a code for programs, a message for people, and an HTTP status.

    Args:
        code: a code whose row in `CODES` names this class.
        message: one sentence or more, shown to the client; may hold text of the client's own.
        param: the field that the error is about.
        retry_after: seconds until the client should try again; by default as in `CODES`.

    Raises:
        KeyError: `CODES` does not have the code.
    """

    default_status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    fault: ClassVar[Fault] = Fault.CLIENT
    default_retry_after: ClassVar[int | None] = None

    def __init__(self, code: str, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(encodable(message))
        row = CODES[code]
        assert type(self) is row.error, f"{code} is raised as {row.error.__name__}"
        self.code = code
        self.message = encodable(message)
        self.param = None if param is None else encodable(param)
        self.status = row.status
        self.retry_after = row.retry_after if retry_after is None else retry_after

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """The body of the HTTP response and the data of an SSE `error` event."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Extra headers of the HTTP response."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def encodable(text: str) -> str:
    """Replace with `?` each half of a surrogate pair; JSON and names of files may hold one, and UTF-8 has none."""
    return text.encode("utf-8", "replace").decode()


class InvalidRequest(ServiceError):
    """The request is understood but cannot be used."""

    default_status = 422
    type = "invalid_request_error"


class Unauthenticated(ServiceError):
    """The request carries no valid API key."""

    default_status = 401
    type = "authentication_error"

    def headers(self) -> dict[str, str]:
        """The authentication scheme to use."""
        return {"WWW-Authenticate": 'Bearer realm="reeltalk"'}


class Forbidden(ServiceError):
    """The caller may not do this."""

    default_status = 403
    type = "permission_error"


class NotFound(ServiceError):
    """There is no such thing, or none that the caller may see."""

    default_status = 404
    type = "not_found_error"


class Stalled(ServiceError):
    """The client stopped in the middle of a request body."""

    default_status = 408
    type = "invalid_request_error"


class Conflict(ServiceError):
    """The thing exists and is busy or in another state."""

    default_status = 409
    type = "conflict_error"


class Gone(ServiceError):
    """The thing existed and was removed."""

    default_status = 410
    type = "gone_error"


class PreconditionFailed(ServiceError):
    """The client speaks another version of a protocol."""

    default_status = 412
    type = "invalid_request_error"


class TooLarge(ServiceError):
    """The request has more bytes than this server accepts."""

    default_status = 413
    type = "invalid_request_error"


class UnsupportedMedia(ServiceError):
    """The file is not a video, or not one that this server can open."""

    default_status = 415
    type = "invalid_request_error"


class Locked(ServiceError):
    """Another request is at work on the same thing."""

    default_status = 423
    type = "conflict_error"
    default_retry_after = 1


class ChecksumMismatch(ServiceError):
    """The bytes received do not match the client's checksum."""

    default_status = 460
    type = "invalid_request_error"


class LimitExceeded(ServiceError):
    """The caller's key has reached one of its limits; other keys are not affected."""

    default_status = 429
    type = "rate_limit_error"
    default_retry_after = 1


class Overloaded(ServiceError):
    """The service has no capacity left; the same request can succeed a little later."""

    default_status = 503
    type = "overloaded_error"
    fault = Fault.CAPACITY
    default_retry_after = 2


class InsufficientMemory(ServiceError):
    """A model does not fit into the memory that is free on its device."""

    default_status = 507
    type = "insufficient_memory_error"
    fault = Fault.CAPACITY


class Unavailable(ServiceError):
    """A part of the service is missing: the store, the model."""

    default_status = 503
    type = "unavailable_error"
    fault = Fault.SERVER
    default_retry_after = 1


class StorageUnavailable(Unavailable):
    """Redis or the bucket does not answer; the same operation can succeed in a moment."""


class InternalError(ServiceError):
    """The service failed. The log has the details; the client gets a code."""

    type = "server_error"
    fault = Fault.SERVER


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """A row of the table of error codes; what is None is the default of the row's class."""

    error: type[ServiceError]
    param: str | None = None
    """The field that the error names when it is rebuilt from its code, see `from_code`."""
    own_status: int | None = None
    own_retry_after: int | None = None

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.own_status or self.error.default_status

    @property
    def fault(self) -> Fault:
        """What has to change before the same request can succeed."""
        return self.error.fault

    @property
    def retry_after(self) -> int | None:
        """Seconds after which a client should send the same request again; None where that is of no use."""
        return self.own_retry_after or self.error.default_retry_after


CODES: Mapping[str, ErrorCode] = {
    "client_disconnected": ErrorCode(InvalidRequest, own_status=400),
    "invalid_key": ErrorCode(Unauthenticated),
    "missing_key": ErrorCode(Unauthenticated),
    "fetch_disabled": ErrorCode(Forbidden),
    "foreign_host": ErrorCode(Forbidden),
    "missing_scope": ErrorCode(Forbidden),
    "not_local": ErrorCode(Forbidden),
    "priority_too_high": ErrorCode(Forbidden),
    "url_not_allowed": ErrorCode(Forbidden),
    "answer_not_found": ErrorCode(NotFound, param="answer_id"),
    "frame_not_found": ErrorCode(NotFound),
    "model_not_found": ErrorCode(NotFound, param="model"),
    "route_not_found": ErrorCode(NotFound),
    "session_not_found": ErrorCode(NotFound, param="session_id"),
    "upload_not_found": ErrorCode(NotFound, param="upload_id"),
    "video_not_found": ErrorCode(NotFound, param="video_ids"),
    "method_not_allowed": ErrorCode(InvalidRequest, own_status=405),
    "upload_stalled": ErrorCode(Stalled),
    "default_model": ErrorCode(Conflict),
    "model_exists": ErrorCode(Conflict),
    "offset_mismatch": ErrorCode(Conflict),
    "request_in_progress": ErrorCode(Conflict, own_retry_after=1),
    "session_busy": ErrorCode(Conflict),
    "upload_gone": ErrorCode(Gone, param="upload_id"),
    "video_gone": ErrorCode(Gone, param="video_ids"),
    "unsupported_version": ErrorCode(PreconditionFailed),
    "body_too_large": ErrorCode(TooLarge),
    "upload_too_large": ErrorCode(TooLarge),
    "no_video_stream": ErrorCode(UnsupportedMedia, param="file"),
    "not_a_video": ErrorCode(UnsupportedMedia, param="file"),
    "unsupported_codec": ErrorCode(UnsupportedMedia, param="file"),
    "unsupported_media_type": ErrorCode(UnsupportedMedia),
    "context_length_exceeded": ErrorCode(InvalidRequest, param="content"),
    "decode_crashed": ErrorCode(InvalidRequest, param="file"),
    "decode_timeout": ErrorCode(InvalidRequest, param="file"),
    "duplicate_field": ErrorCode(InvalidRequest),
    "empty_interval": ErrorCode(InvalidRequest, param="frames"),
    "empty_upload": ErrorCode(InvalidRequest),
    "fetch_failed": ErrorCode(InvalidRequest),
    "fetch_timeout": ErrorCode(InvalidRequest),
    "idempotency_key_reused": ErrorCode(InvalidRequest),
    "invalid_url": ErrorCode(InvalidRequest),
    "invalid_value": ErrorCode(InvalidRequest),
    "malformed_data_url": ErrorCode(InvalidRequest),
    "malformed_form": ErrorCode(InvalidRequest),
    "malformed_json": ErrorCode(InvalidRequest),
    "missing_field": ErrorCode(InvalidRequest),
    "missing_file": ErrorCode(InvalidRequest),
    "missing_question": ErrorCode(InvalidRequest),
    "no_frames": ErrorCode(InvalidRequest, param="file"),
    "too_large": ErrorCode(InvalidRequest, param="file"),
    "too_long": ErrorCode(InvalidRequest, param="file"),
    "too_many_frames": ErrorCode(InvalidRequest),
    "too_many_redirects": ErrorCode(InvalidRequest),
    "too_many_videos": ErrorCode(InvalidRequest),
    "undecodable": ErrorCode(InvalidRequest, param="file"),
    "unknown_field": ErrorCode(InvalidRequest),
    "unsupported_value": ErrorCode(InvalidRequest),
    "upload_busy": ErrorCode(Locked),
    "storage_full": ErrorCode(LimitExceeded),
    "too_many_answers": ErrorCode(LimitExceeded),
    "too_many_requests": ErrorCode(LimitExceeded),
    "headers_too_large": ErrorCode(InvalidRequest, own_status=431),
    "checksum_mismatch": ErrorCode(ChecksumMismatch),
    "answer_lost": ErrorCode(InternalError),
    "encode_failed": ErrorCode(InternalError),
    "engine_error": ErrorCode(InternalError),
    "internal_error": ErrorCode(InternalError),
    "worker_lost": ErrorCode(InternalError),
    "answer_moved": ErrorCode(Unavailable),
    "deadline_exceeded": ErrorCode(Overloaded),
    "decode_unavailable": ErrorCode(Unavailable),
    "draining": ErrorCode(Unavailable),
    "media_unavailable": ErrorCode(StorageUnavailable),
    "model_unavailable": ErrorCode(Unavailable),
    "no_replica": ErrorCode(Unavailable),  # sent by the balancer
    "overloaded": ErrorCode(Overloaded),
    "store_unavailable": ErrorCode(StorageUnavailable),
    "try_again": ErrorCode(Unavailable),
    "insufficient_memory": ErrorCode(InsufficientMemory),
    "http_error": ErrorCode(InvalidRequest),  # sent with the status that the web framework chose
}
"""The table of error codes, in the order of `docs/api.md`."""


def from_code(code: str, message: str) -> ServiceError:
    """Rebuild an error from the code and message that a decode child, a worker or a stored record has.

    A code that is not in the table was written by another release; it becomes an `internal_error`.
    """
    row = CODES.get(code)
    if row is None:
        return InternalError("internal_error", message)
    return row.error(code, message, param=row.param)


def unexpected_error() -> InternalError:
    """The error that clients receive in place of an unexpected exception."""
    return InternalError("internal_error", "Something went wrong on our side.")


def fault_of(code: str) -> Fault:
    """The fault of a stored code; `SERVER` for one that is not in the table."""
    row = CODES.get(code)
    return Fault.SERVER if row is None else row.fault
