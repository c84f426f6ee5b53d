"""The errors of the client commands: a sentence for each, and an exit status for each kind."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    """The exit statuses of the client commands."""

    FAILED = 1
    """The service failed; the same command may succeed later."""
    USAGE = 2
    """The arguments of the command are invalid."""
    UNREACHABLE = 3
    """No service responds, or the connection was lost and could not be restored."""
    REFUSED = 4
    """The service refused the request: for example, the file is not a video or the question is too long."""
    NO_KEY = 5
    """The API key is missing or unknown, or it does not allow this."""
    NOT_FOUND = 6
    """There is no video, session or answer with this id."""
    NOT_NOW = 7
    """The service is busy, over a limit, or shutting down; the same command may succeed later."""
    INTERRUPTED = 130
    """Ctrl-C."""


_STATUS_OF_TYPE = {
    "invalid_request_error": Exit.REFUSED,
    "authentication_error": Exit.NO_KEY,
    "permission_error": Exit.NO_KEY,
    "not_found_error": Exit.NOT_FOUND,
    "gone_error": Exit.NOT_FOUND,
    "conflict_error": Exit.NOT_NOW,
    "rate_limit_error": Exit.NOT_NOW,
    "overloaded_error": Exit.NOT_NOW,
    "unavailable_error": Exit.NOT_NOW,
}
_REFUSED_FOR_ANY_KEY = {"fetch_disabled", "url_not_allowed", "foreign_host", "priority_too_high"}
"""Codes of the type `permission_error` that another API key would not change."""


class Failure(Exception):
    """An error that ends a command: a sentence for people, a code for programs, an exit status for scripts."""

    def __init__(
        self, status: Exit, message: str, *, code: str, is_transient: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.is_transient = is_transient
        """Whether a request that has begun may succeed on a retry."""
        self.retry_after = retry_after
        """The seconds to wait before a retry, if the service named them."""

    @classmethod
    def from_envelope(cls, envelope: Mapping[str, Any], *, retry_after: float | None = None) -> "Failure":
        """Create a failure from the service's error envelope in the body of a response or the data of an event."""
        found = envelope.get("error")
        error = found if isinstance(found, Mapping) else {}
        kind, code = str(error.get("type", "")), str(error.get("code") or "unknown")
        return cls(
            Exit.REFUSED if code in _REFUSED_FOR_ANY_KEY else _STATUS_OF_TYPE.get(kind, Exit.FAILED),
            str(error.get("message") or "The service failed without a message."),
            code=code,
            is_transient=kind in {"server_error", "overloaded_error", "unavailable_error"},
            retry_after=retry_after,
        )

    def envelope(self) -> dict[str, dict[str, str]]:
        """The document that `--json` prints instead of a result."""
        return {"error": {"message": self.message, "code": self.code}}


def usage_error(message: str) -> Failure:
    """Create a failure for invalid arguments of a command."""
    return Failure(Exit.USAGE, message, code="usage")
