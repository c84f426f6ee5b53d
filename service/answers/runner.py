"""Runs the answers that this replica owns: from the accepted question to the last event in the store.

Events go to a log in the store before any reader sees them. An answer belongs to the replica that accepted its
question until that replica dies or drains; then to the replica that takes it over.
"""

import asyncio
import contextlib
import functools
import math
import time

import structlog
from structlog.contextvars import bound_contextvars

from service.answers.answer import RunningAnswer
from service.answers.generation import deadline_exceeded
from service.answers.inputs import VideoInputs, prepare_videos
from service.answers.jobs import GenerationJobs
from service.answers.loops import Loops
from service.answers.presence import Presence
from service.answers.writer import STORE_PATIENCE, STORE_RETRY, AnswerWriter
from service.errors import InternalError, ServiceError, StorageUnavailable, Unavailable
from service.observability.logging import bound_ids
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.answers import AnswerStore, OwnerVerdict
from service.store.records import AnswerRecord
from service.store.videos import VideoStore
from service.videos.preparation import Preparation
from service.videos.progress import PreparationProgress
from service.workers.protocol import Delta, Refused

_log = structlog.get_logger(__name__)

_FLUSH_TIMEOUT = 2.0
_FIRST_READER = 5.0  # seconds that the client that asked has at least to begin to read


class AnswerRunner:
    """The running answers of one replica."""

    def __init__(
        self,
        *,
        settings: Settings,
        jobs: GenerationJobs,
        preparation: Preparation,
        videos: VideoStore,
        answers: AnswerStore,
        presence: Presence,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._preparation = preparation
        self._videos = videos
        self._answers = answers
        self._presence = presence
        self._metrics = metrics
        self._running: dict[str, RunningAnswer] = {}
        self._writer = AnswerWriter(answers, on_verdict=self._apply)
        self._loops = Loops()

    def __contains__(self, answer_id: str) -> bool:
        """Whether this replica owns the answer."""
        return answer_id in self._running

    def start(self) -> None:
        """Begin to write events and to renew leases."""
        self._loops.start(self._writer.run, self._renew_leases)

    async def close(self) -> None:
        """Hand over what still runs, and stop."""
        await self.hand_over()
        await self._loops.close()

    def begin(self, answer: RunningAnswer) -> None:
        """Run an accepted answer until it ends."""
        self._running[answer.id] = answer
        answer.ids = bound_ids() | {
            "tenant": answer.tenant,
            "session_id": answer.session.id,
            "video_id": ",".join(answer.session.video_ids),
            "answer_id": answer.id,
        }
        answer.generation.begin_trace(response_id=answer.id, model=answer.session.model, session_id=answer.session.id)
        with bound_contextvars(**answer.ids), answer.generation.trace.current():
            answer.preparing = asyncio.create_task(self._prepare(answer), name=f"prepare {answer.id}")
        answer.deadline = asyncio.get_running_loop().call_later(self._seconds_left(answer.record), self._expire, answer)
        self._presence.watch(
            answer.tenant,
            answer.id,
            first_grace=max(self._settings.disconnect_grace, _FIRST_READER),
            on_abandoned=functools.partial(self._abandon, answer),
        )

    def end(self, answer: RunningAnswer, error: ServiceError | None = None) -> None:
        """End an answer that nothing can generate here: with an error, or without one as if a client cancelled it."""
        self.begin(answer)
        if error is None:
            self._cancel(answer)
        else:
            self.fail(answer, error)
            answer.close()

    def cancel(self, answer_id: str) -> bool:
        """Stop an answer that runs here; its text so far is kept. False if this replica does not own it any more."""
        answer = self._running.get(answer_id)
        if answer is None or answer.is_handed_over:
            return False
        self._cancel(answer)
        return True

    def forget(self, answer_id: str) -> None:
        """Stop an answer that was erased. Nothing happens if it does not run here."""
        if answer_id in self._running:
            self._drop(self._running[answer_id])

    def fail(self, answer: RunningAnswer, error: ServiceError) -> None:
        """End an answer with an error, unless it has ended."""
        if not answer.ended:
            answer.fail(error)
            self._writer.add(answer)

    def num_answers_of(self, model: str) -> int:
        """The number of answers of a model that run here."""
        return sum(answer.session.model == model for answer in self._running.values())

    async def hand_over(self, *, model: str | None = None) -> None:
        """Let other replicas continue every answer that runs here, after the last token written.

        `model` limits this to the answers of one model.
        """
        leaving = [answer for answer in self._running.values() if model in {None, answer.session.model}]
        for answer in leaving:
            answer.is_handed_over = True  # later output of its job is ignored: the next owner generates it again
            answer.close()
            self._jobs.abort(answer.owner)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._writer.flush(), _FLUSH_TIMEOUT)
        for answer in leaving:
            if not answer.ended:
                _log.info("answer_handed_over", **answer.ids)
            self._drop(answer)
            with contextlib.suppress(ServiceError):  # then its lease expires
                await self._answers.release(answer.tenant, answer.id, answer.owner)

    # -- from the question to a job in the pool

    async def _prepare(self, answer: RunningAnswer) -> None:
        """Get the features of the session's videos and give the job to the pool."""
        try:
            inputs = await self._prepare_videos(answer)
            if answer.ended:
                return
            self._check_generator(answer)
            answer.set_frames(
                inputs.frames, time_axis=inputs.time_axis
            )  # no await between this and `generate`: a cancel finds the job in the pool
            command = inputs.command(
                answer.generation,
                tenant=answer.tenant,
                system=answer.session.system,
                turns=answer.turns,
                priority=answer.record.priority,
                output_token_ids=answer.resumed_token_ids,
            )
            self._jobs.generate(command, functools.partial(self._on_output, answer), model=answer.session.model)
        except ServiceError as error:
            self.fail(answer, error)
        except Exception:  # noqa: BLE001  readers wait: the answer must end
            _log.exception("answer_failed_unexpectedly")
            self.fail(answer, InternalError("internal_error", "Something went wrong on our side."))

    def _check_generator(self, answer: RunningAnswer) -> None:
        """Refuse to generate an answer with another model that has got the name of its own meanwhile.

        Raises:
            Unavailable: the model of this name is another one.
        """
        model = answer.session.model
        if answer.generator is not None and self._jobs.identity(model) not in {None, answer.generator}:
            raise Unavailable("model_unavailable", f"The model {model!r} was replaced by another one; ask again.")

    async def _prepare_videos(self, answer: RunningAnswer) -> VideoInputs:
        """Prepare the videos; try again while the store cannot be reached."""

        def on_progress(progress: PreparationProgress) -> None:
            answer.add_progress(progress.video_id, progress.stage, progress.fraction)
            self._writer.add(answer)

        give_up = time.monotonic() + STORE_PATIENCE
        while True:
            try:
                return await prepare_videos(
                    self._preparation,
                    self._videos,
                    answer.tenant,
                    answer.videos,
                    answer.session.frames,
                    model=answer.session.model,
                    on_progress=on_progress,
                )
            except StorageUnavailable:
                if time.monotonic() > give_up:
                    raise
            await asyncio.sleep(STORE_RETRY)

    def _on_output(self, answer: RunningAnswer, output: Delta | Refused) -> None:
        """Add a worker's output, unless the answer has ended or this replica no longer owns it."""
        if self._running.get(answer.id) is answer and not answer.ended and not answer.is_handed_over:
            answer.add_output(output, self._metrics.of_model(answer.session.model))
            self._writer.add(answer)

    # -- what the store says

    async def _apply(self, answer: RunningAnswer, verdict: OwnerVerdict) -> None:
        """Apply the store's verdict on an answer of this replica."""
        if verdict is OwnerVerdict.LOG_TRUNCATED:  # the store lost the end of the log: generate it again from there
            _log.warning("answer_log_broken", **answer.ids)
            with contextlib.suppress(ServiceError):
                await self._answers.release(answer.tenant, answer.id, answer.owner)
        if verdict in {OwnerVerdict.LOST, OwnerVerdict.LOG_TRUNCATED}:
            self._drop(answer)
        elif answer.is_stored:
            if self._running.get(answer.id) is answer:
                answer.generation.record_end(self._metrics.of_model(answer.session.model), **answer.ids)
            self._drop(answer)
        elif verdict is OwnerVerdict.CANCEL_REQUESTED:
            self._cancel(answer)

    async def _renew_leases(self) -> None:
        """Renew the leases of all running answers. The verdict tells when another replica was asked to cancel one."""
        while True:
            await asyncio.sleep(self._settings.lease_seconds / 3)
            for answer in [answer for answer in self._running.values() if not answer.ended]:
                with contextlib.suppress(ServiceError):
                    verdict = await self._answers.renew(
                        answer.tenant, answer.id, answer.owner, lease_seconds=self._settings.lease_seconds
                    )
                    if not answer.ended:  # if it ended meanwhile, its last write gave the lease back
                        await self._apply(answer, verdict)

    def _drop(self, answer: RunningAnswer) -> None:
        """Stop working on an answer that is over, erased, or another replica's."""
        if self._running.get(answer.id) is answer:
            del self._running[answer.id]
            self._presence.unwatch(answer.id)
            self._jobs.abort(answer.owner)
        answer.close()

    # -- endings without a last token

    def _cancel(self, answer: RunningAnswer) -> None:
        if answer.is_generating:
            self._jobs.abort(answer.owner)
        elif not answer.ended:
            answer.finish("abort")
            answer.close()
            self._writer.add(answer)

    def _abandon(self, answer: RunningAnswer) -> None:
        _log.info("answer_abandoned", **answer.ids)
        self._cancel(answer)

    def _expire(self, answer: RunningAnswer) -> None:
        self._jobs.abort(answer.owner)
        self.fail(answer, deadline_exceeded())

    def _seconds_left(self, record: AnswerRecord) -> float:
        """Seconds until the answer must have ended: the client's deadline, within the server's bound."""
        wished = math.inf if record.deadline is None else record.deadline - time.time()
        return max(0.0, min(self._settings.answer_timeout, wished))
