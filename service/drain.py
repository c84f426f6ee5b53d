"""Drain: announce the stop, close to new work, and let answers end or move to other replicas."""

import asyncio
import contextlib
from typing import Literal

import structlog

from service.answers.admission import Admission
from service.answers.answers import Answers

_log = structlog.get_logger(__name__)

State = Literal["accepting", "announced", "draining", "drained"]


class Drain:
    """The drain of one replica. It cannot be undone: a drained replica must be started again.

    `notice` is how many seconds the replica still accepts work after `/readyz` turns unready, so that balancers notice.
    `patience` is how many seconds answers may continue after that, before other replicas take them over.
    """

    def __init__(self, *, admission: Admission, answers: Answers, notice: float, patience: float) -> None:
        self._admission = admission
        self._answers = answers
        self._notice = notice
        self._patience = patience
        self._task: asyncio.Task[None] | None = None
        self._skips_notice = asyncio.Event()
        self._skips_patience = asyncio.Event()
        self._closed = asyncio.Event()
        self.state: State = "accepting"

    @property
    def is_announced(self) -> bool:
        """Whether balancers must choose another replica."""
        return self.state != "accepting"

    def begin(self, *, at_once: bool = False) -> None:
        """Begin to drain; `at_once` skips the notice. Nothing more happens if it has begun."""
        if at_once:
            self._skips_notice.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="drain")

    def give_up(self) -> None:
        """Wait no longer: leave running answers to other replicas now, or to the next start."""
        self._skips_patience.set()
        self.begin(at_once=True)

    async def closed(self) -> None:
        """Wait until the replica accepts nothing new."""
        await self._closed.wait()

    async def finish(self) -> None:
        """Wait until no answer runs here any more, if a drain has begun."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        self.state = "announced"
        _log.info("drain_announced", num_answers=self._admission.num_answers, notice=self._notice)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._skips_notice.wait(), self._notice)
        self.state = "draining"
        self._admission.close()
        self._closed.set()
        await self._answers.drain(patience=self._patience, hurry=self._skips_patience)
        self.state = "drained"
        _log.info("drained")
