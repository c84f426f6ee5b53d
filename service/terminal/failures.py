"""What can go wrong for a user of the terminal: one sentence each, and an exit status for each kind."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    """The exit statuses of the commands that talk to a service."""

    FAILED = 1
    """The service could not do it; the same again may go well."""
    USAGE = 2
    """The command as it was given cannot be carried out."""
    UNREACHABLE = 3
    """No service there, or the connection was lost for good."""
    REFUSED = 4
    """The service does not take this: a file that is no video, a question too long."""
    NO_KEY = 5
    """The API key is missing, unknown, or for something else."""
    NOT_FOUND = 6
    """No video, session or answer of this id."""
    NOT_NOW = 7
    """Busy, over a limit, or stopping: later it may go well."""
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
_ABOUT_THE_REQUEST = {"fetch_disabled", "url_not_allowed", "foreign_host", "priority_too_high"}
"""Codes that another key would not help against, though their type is that of permissions."""


class Failure(Exception):
    """What ends a command: a sentence for people, a code for programs, an exit status for scripts."""

    def __init__(
        self, status: Exit, message: str, *, code: str, is_passing: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.is_passing = is_passing
        """Whether what has begun may be gone on with after a moment."""
        self.retry_after = retry_after
        """Seconds after which the service wants to be asked again."""

    @classmethod
    def of_envelope(cls, envelope: Mapping[str, Any], *, retry_after: float | None = None) -> "Failure":
        """The service's own error, as a reply's body or an event's data has it."""
        found = envelope.get("error")
        error = found if isinstance(found, Mapping) else {}
        kind, code = str(error.get("type", "")), str(error.get("code") or "unknown")
        return cls(
            Exit.REFUSED if code in _ABOUT_THE_REQUEST else _STATUS_OF_TYPE.get(kind, Exit.FAILED),
            str(error.get("message") or "The service failed without saying why."),
            code=code,
            is_passing=kind in {"server_error", "overloaded_error", "unavailable_error"},
            retry_after=retry_after,
        )

    def envelope(self) -> dict[str, dict[str, str]]:
        """The document that `--json` prints in the place of a result."""
        return {"error": {"message": self.message, "code": self.code}}


def misused(message: str) -> Failure:
    """The command as given cannot be carried out."""
    return Failure(Exit.USAGE, message, code="usage")
