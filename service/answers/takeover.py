"""Takes over answers whose owner died or drained: finds them, becomes their owner, rebuilds them from the store."""

import asyncio
import contextlib
import math
import random
import time

import structlog

from model.text.conversation import Turn
from service.answers.admission import Admission
from service.answers.answer import RunningAnswer
from service.answers.generation import Generation, deadline_exceeded
from service.answers.jobs import GenerationJobs
from service.answers.loops import Loops
from service.answers.runner import AnswerRunner
from service.errors import InternalError, NotFound, ServiceError
from service.ids import new_id
from service.observability.metrics import Metrics
from service.store.answers import AnswerStore
from service.store.records import AnswerRecord, SessionRecord, VideoRecord
from service.store.sessions import SessionStore
from service.store.videos import VideoStore

_log = structlog.get_logger(__name__)

_MAX_DEATHS = 10
"""Owners in a row that may die without adding a token. After that the answer is assumed to kill them and fails."""


class Takeover:
    """Continues answers that no replica owns, with the model that began them.

    An answer whose model is served nowhere, or only under the name of another one, waits until it is cancelled or its
    time is up; `answer_timeout` bounds that wait in seconds. Any replica ends it then.
    """

    def __init__(
        self,
        *,
        runner: AnswerRunner,
        jobs: GenerationJobs,
        admission: Admission,
        videos: VideoStore,
        sessions: SessionStore,
        answers: AnswerStore,
        lease_seconds: float,
        answer_timeout: float,
        metrics: Metrics,
    ) -> None:
        self._runner = runner
        self._jobs = jobs
        self._admission = admission
        self._videos = videos
        self._sessions = sessions
        self._answers = answers
        self._lease_seconds = lease_seconds
        self._answer_timeout = answer_timeout
        self._metrics = metrics
        self._is_stopped = False
        self._loops = Loops()

    def start(self) -> None:
        """Begin to look for answers without an owner, also for those that have no reader."""
        self._loops.start(self._sweep)

    def stop(self) -> None:
        """Stop taking over answers, because this replica drains."""
        self._is_stopped = True

    async def close(self) -> None:
        """Stop the sweep."""
        self.stop()
        await self._loops.close()

    async def ensure_owned(self, tenant: str, answer_id: str) -> None:
        """Take over an answer in progress if no replica owns it and this one serves its model, or it must end."""
        if self._may_take_over(answer_id) and not await self._answers.is_owned(tenant, answer_id):
            await self._take_over_if_served(tenant, answer_id)

    def _may_take_over(self, answer_id: str) -> bool:
        return answer_id not in self._runner and not self._is_stopped

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds * random.uniform(0.25, 0.5))  # noqa: S311  spreads the replicas
            if self._is_stopped:
                continue
            with contextlib.suppress(ServiceError):
                for tenant, answer_id in await self._answers.orphans():
                    if self._may_take_over(answer_id):  # not what this replica is still writing
                        await self._take_over_if_served(tenant, answer_id)

    async def _take_over_if_served(self, tenant: str, answer_id: str) -> None:
        """Take over an answer if a worker of the model that began it is ready here; otherwise only to end it."""
        record = await self._answers.get(tenant, answer_id)
        session = None if record is None else await self._sessions.get(tenant, record.session_id)
        if record is None or session is None:  # erased: `take` removes what is left
            await self._take(tenant, answer_id)
            return
        generator = await self._answers.generator(tenant, answer_id)
        served = self._jobs.identity(session.model)
        if self._jobs.serves(session.model) and generator in {None, served}:
            await self._take_over(tenant, answer_id, generator=served)
        elif await self._answers.is_cancel_requested(tenant, answer_id):
            await self._end(tenant, answer_id)
        elif await self._is_overdue(tenant, record):
            await self._end(tenant, answer_id, deadline_exceeded())

    async def _is_overdue(self, tenant: str, record: AnswerRecord) -> bool:
        """Whether the time of an answer without an owner is up; begins to count it."""
        now = time.time()
        since = await self._answers.unserved_since(tenant, record.id, now=now)
        if since is None:  # it has an owner by now, or is over
            return False
        return now >= min(since + self._answer_timeout, math.inf if record.deadline is None else record.deadline)

    async def _take_over(self, tenant: str, answer_id: str, *, generator: str | None) -> None:
        """Become the owner and continue, unless another replica was quicker or the answer is over."""
        taken = await self._take(tenant, answer_id, generator=generator)
        if taken is None:
            return
        answer, num_deaths = taken
        self._metrics.of_model(answer.session.model).answer_takeovers.inc()
        _log.info(
            "answer_taken_over",
            answer_id=answer_id,
            tenant=tenant,
            num_tokens=len(answer.resumed_token_ids),
            num_deaths=num_deaths,
        )
        self._runner.begin(answer)
        failure = _failure(num_deaths, answer.session.video_ids, answer.videos)
        if failure is not None:
            self._runner.fail(answer, failure)

    async def _end(self, tenant: str, answer_id: str, error: ServiceError | None = None) -> None:
        """Become the owner only to end the answer: with an error, or without one as cancelled."""
        taken = await self._take(tenant, answer_id)
        if taken is not None:
            _log.info("answer_ended_without_model", answer_id=answer_id, tenant=tenant, model=taken[0].session.model)
            self._runner.end(taken[0], error)

    async def _take(
        self, tenant: str, answer_id: str, *, generator: str | None = None
    ) -> tuple[RunningAnswer, int] | None:
        """Become the owner; returns the answer, and how many owners died in a row. None if it has an owner or is over.

        `generator` is recorded for the next owner, unless it has been.
        """
        owner = new_id("own")
        num_deaths = await self._answers.take(
            tenant, answer_id, owner, lease_seconds=self._lease_seconds, generator=generator
        )
        if num_deaths is None:
            return None
        record = await self._answers.get(tenant, answer_id)
        session = None if record is None else await self._sessions.get(tenant, record.session_id)
        if record is None or session is None:
            return None  # erased meanwhile
        return await self._rebuild(tenant, owner, record, session), num_deaths

    async def _rebuild(self, tenant: str, owner: str, record: AnswerRecord, session: SessionRecord) -> RunningAnswer:
        history = await self._sessions.messages(tenant, session.id)
        videos = await self._videos.get_many(tenant, session.video_ids)
        log = await self._answers.whole_log(tenant, record.id)
        generator = await self._answers.generator(tenant, record.id)
        params = record.sampling
        answer = RunningAnswer(
            tenant=tenant,
            record=record,
            session=session,
            videos=tuple(videos),
            turns=(*(Turn(role=m.role, text=m.content) for m in history), Turn(role="user", text=record.question)),
            num_messages=len(history),
            generation=Generation(job_id=owner, params=params, place=self._admission.take_unbounded(params.num_beams)),
            generator=generator,
        )
        answer.resume(log)
        return answer


def _failure(num_deaths: int, video_ids: tuple[str, ...], videos: tuple[VideoRecord, ...]) -> ServiceError | None:
    """The error that ends the answer at once; None if it can continue."""
    if len(videos) < len(video_ids):
        return NotFound("video_not_found", "A video of this session was erased.", param="video_ids")
    if num_deaths > _MAX_DEATHS:
        return InternalError("answer_lost", "Every replica that generated this answer died; ask another question.")
    return None
