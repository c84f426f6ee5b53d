"""When something is tried again: after a lost connection, and when the service says so. No request is made here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from service.terminal.failures import Failure

_T = TypeVar("_T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
_LONGEST_WAIT = 60.0  # seconds of pauses with nothing gained between them: a service may start anew meanwhile
_WORTH_TELLING = 1.0  # seconds
_LASTING = {"storage_full"}
"""Refusals that no waiting ends, although they come with a time to ask again."""


@dataclass
class Retries:
    """How often one thing was tried in vain; `wait` comes between two tries."""

    sleep: Callable[[float], None]
    tell: Callable[[str], None]
    """Gets a sentence for whoever sits there, when the wait is not a short one."""
    has_begun: bool = False
    """Whether the service is known to be there and at work on it."""
    _losses: int = field(default=0, init=False)
    _waited: float = field(default=0.0, init=False)

    def gained(self) -> None:
        """Something came: whatever was lost before it does not count any more."""
        self.has_begun = True
        self._losses, self._waited = 0, 0.0

    def wait(self, failure: Failure) -> None:
        """Pause before the next try.

        Raises:
            Failure: this one, where another try is of no use.
        """
        if failure.retry_after is not None and failure.code not in _LASTING:
            pause = max(failure.retry_after, _FIRST_PAUSE)
        elif self._is_lost(failure):
            pause = min(_FIRST_PAUSE * 2**self._losses, _LONGEST_PAUSE)
            self._losses += 1
        else:
            raise failure
        self._waited += pause
        if self._waited > _LONGEST_WAIT:
            raise failure
        if pause >= _WORTH_TELLING:
            self.tell(f"{failure.message} Trying again in {pause:.0f} s.")
        self.sleep(pause)

    def _is_lost(self, failure: Failure) -> bool:
        """Whether the connection is what failed. A service that never answered is not waited for."""
        if failure.code == "unreachable":
            return self.has_begun or self._losses > 0
        return failure.code == "connection_lost" or (self.has_begun and failure.is_passing)


def until_done(send: Callable[[], _T], retries: Retries) -> _T:
    """The result of what is safe to repeat, tried as often as it is worth it."""
    while True:
        try:
            return send()
        except Failure as failure:
            retries.wait(failure)
