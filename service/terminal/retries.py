"""Decides when a failed request is retried: after a lost connection, or when the service sends `Retry-After`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from service.terminal.failures import Failure

_T = TypeVar("_T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
_LONGEST_WAIT = 60.0  # seconds of pauses without progress between them; a service can restart in that time
_NOTIFY_FROM = 1.0  # seconds; shorter pauses are not announced
_PERMANENT = {"storage_full"}
"""Codes that are not retried although the response has `Retry-After`."""


@dataclass
class Retries:
    """The retries of one operation; call `wait` between two tries."""

    sleep: Callable[[float], None]
    """Called with the seconds to wait."""
    notify: Callable[[str], None]
    """Called with a sentence for the user before a long wait."""
    has_begun: bool = False
    """Whether the service has responded and is known to work on the operation."""
    _losses: int = field(default=0, init=False)
    _waited: float = field(default=0.0, init=False)

    def reset(self) -> None:
        """Forget earlier losses, because the operation has made progress."""
        self.has_begun = True
        self._losses, self._waited = 0, 0.0

    def wait(self, failure: Failure) -> None:
        """Wait before the next try.

        Raises:
            Failure: `failure` itself, if a retry would not help.
        """
        if failure.retry_after is not None and failure.code not in _PERMANENT:
            pause = max(failure.retry_after, _FIRST_PAUSE)
        elif self._is_lost(failure):
            pause = min(_FIRST_PAUSE * 2**self._losses, _LONGEST_PAUSE)
            self._losses += 1
        else:
            raise failure
        self._waited += pause
        if self._waited > _LONGEST_WAIT:
            raise failure
        if pause >= _NOTIFY_FROM:
            self.notify(f"{failure.message} Trying again in {pause:.0f} s.")
        self.sleep(pause)

    def _is_lost(self, failure: Failure) -> bool:
        """Whether the connection was lost. A service that has never responded is not waited for."""
        if failure.code == "unreachable":
            return self.has_begun or self._losses > 0
        return failure.code == "connection_lost" or (self.has_begun and failure.is_transient)


def with_retries(send: Callable[[], _T], retries: Retries) -> _T:
    """Call `send`, which must be safe to repeat, until it succeeds or `retries` gives up."""
    while True:
        try:
            return send()
        except Failure as failure:
            retries.wait(failure)
