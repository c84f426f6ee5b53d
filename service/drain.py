"""Leaving without loss: announced first, then closed to new work, then what runs ends or goes to another replica."""

import asyncio
import contextlib
from typing import Literal

import structlog

from service.answers.runner import Answering
from service.errors import Unavailable

_log = structlog.get_logger(__name__)

State = Literal["accepting", "announced", "draining", "drained"]


class Drain:
    """How far this replica is on its way out. There is no way back: a replica that was drained is started anew.

    `notice` is how long it still takes everything after it says that it is not ready, so that balancers hear of it;
    `patience` how long answers may run on after that, before other replicas are to go on with them.
    """

    def __init__(self, *, answering: Answering, notice: float, patience: float) -> None:
        self._answering = answering
        self._notice = notice
        self._patience = patience
        self._task: asyncio.Task[None] | None = None
        self._is_hurried = asyncio.Event()
        self._has_given_up = asyncio.Event()
        self._closed = asyncio.Event()
        self.state: State = "accepting"

    @property
    def is_announced(self) -> bool:
        """Whether balancers are to look for another replica."""
        return self.state != "accepting"

    def begin(self, *, at_once: bool = False) -> None:
        """Leave, by and by; `at_once` is without notice. Nothing more happens if it has begun."""
        if at_once:
            self._is_hurried.set()
        if self._task is None:
            self._task = asyncio.create_task(self._leave(), name="drain")

    def give_up(self) -> None:
        """Wait for nothing any more: what runs is left to other replicas now, or to the next start."""
        self._has_given_up.set()
        self.begin(at_once=True)

    async def closed(self) -> None:
        """Wait until nothing new is taken."""
        await self._closed.wait()

    async def finish(self) -> None:
        """Wait until nothing runs here any more, if it has begun."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def check(self) -> None:
        """Refuse new work of a replica that leaves.

        Raises:
            Unavailable: it does.
        """
        if self._closed.is_set():
            raise Unavailable("draining", "This replica is stopping and takes nothing new; another one does.")

    async def _leave(self) -> None:
        self.state = "announced"
        _log.info("drain_announced", num_answers=self._answering.num_running, notice=self._notice)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_hurried.wait(), self._notice)
        self.state = "draining"
        self._closed.set()
        await self._answering.leave(patience=self._patience, hurry=self._has_given_up)
        self.state = "drained"
        _log.info("drained")
