"""Questions in sessions: from the request to a running answer."""

import time

from structlog.contextvars import bind_contextvars

from model.text.conversation import Turn
from service.access.callers import Caller
from service.access.limits import ConcurrencyLimit
from service.answers.acceptance import Acceptance, check_modality, longest_prompt
from service.answers.admission import Admission, Place
from service.answers.answer import RunningAnswer
from service.answers.generation import Generation
from service.answers.question import Question
from service.answers.runner import AnswerRunner
from service.answers.sessions import known_videos, session_not_found
from service.errors import Conflict, Forbidden, ServiceError
from service.ids import new_id
from service.store.answers import AnswerStore, CreateOutcome
from service.store.idempotency import IdempotencyStore, Repeatable
from service.store.records import AnswerRecord
from service.store.sessions import SessionStore
from service.store.videos import VideoStore


class Questions:
    """Accepts questions and begins their answers."""

    def __init__(
        self,
        *,
        admission: Admission,
        acceptance: Acceptance,
        runner: AnswerRunner,
        concurrency_limit: ConcurrencyLimit,
        sessions: SessionStore,
        videos: VideoStore,
        answers: AnswerStore,
        idempotency: IdempotencyStore,
        lease_seconds: float,
    ) -> None:
        self._admission = admission
        self._acceptance = acceptance
        self._runner = runner
        self._concurrency_limit = concurrency_limit
        self._sessions = sessions
        self._videos = videos
        self._answers = answers
        self._idempotency = idempotency
        self._lease_seconds = lease_seconds

    async def ask(
        self, caller: Caller, session_id: str, question: Question, *, repeatable: Repeatable | None = None
    ) -> AnswerRecord:
        """Accept a question. When this returns, its answer runs and can be followed.

        A repeated `repeatable` request returns the answer of the first one, whatever its state.

        Raises:
            ServiceError: a refusal; nothing has begun.
        """
        self._admission.check_open()
        answer_id = new_id("ans")
        if question.priority > caller.limits.max_priority:
            raise Forbidden(
                "priority_too_high",
                f"This key may use a priority of at most {caller.limits.max_priority}.",
                param="priority",
            )
        if repeatable is not None:
            claimed_id = await self._idempotency.claim(caller.tenant, repeatable, result_id=answer_id)
            if claimed_id != answer_id and (known := await self._answers.get(caller.tenant, claimed_id)):
                return known
            answer_id = claimed_id
        bind_contextvars(answer_id=answer_id)
        place = self._admission.take(question.sampling.num_beams or 1)
        try:
            async with self._concurrency_limit.count_answer(caller, answer_id):
                answer = await self._accept(caller.tenant, session_id, answer_id, question, place)
                self._runner.begin(answer)
        except BaseException:
            place.release()
            raise
        return answer.record

    async def _accept(
        self, tenant: str, session_id: str, answer_id: str, question: Question, place: Place
    ) -> RunningAnswer:
        """Check a question and store its answer's record, which makes the session busy."""
        deadline = None if question.timeout is None else time.time() + question.timeout
        conversation = await self._sessions.conversation(tenant, session_id)
        if conversation is None:
            raise session_not_found()
        session, history, running_id = conversation
        if running_id is not None:
            raise _in_progress() if running_id == answer_id else _busy()
        videos = await known_videos(self._videos, tenant, session.video_ids)
        turns = (*(Turn(role=m.role, text=m.content) for m in history), Turn(role="user", text=question.content))
        accepted = await self._acceptance.check_fields(question, model=session.model)
        check_modality(accepted.model, has_videos=bool(videos), param="session_id")
        await self._acceptance.check_videos(tenant, videos, session.frames, model=accepted.model)
        prompt = longest_prompt(videos, turns, system=session.system, frames=session.frames, info=accepted.model)
        await self._acceptance.check_prompt(prompt, model=session.model, place=place, deadline=deadline)
        record = AnswerRecord(
            id=answer_id,
            session_id=session_id,
            question=question.content,
            sampling=accepted.params,
            created_at=time.time(),
            priority=question.priority,
            deadline=deadline,
        )
        answer = RunningAnswer(
            tenant=tenant,
            record=record,
            session=session,
            videos=tuple(videos),
            turns=turns,
            num_messages=len(history),
            generation=Generation(job_id=new_id("own"), params=accepted.params, place=place),
            generator=accepted.model.identity,
        )
        outcome = await self._answers.create(
            tenant,
            record,
            opening=answer.opening(),
            num_messages=len(history),
            owner=answer.owner,
            generator=accepted.model.identity,
            lease_seconds=self._lease_seconds,
        )
        if refusal := _refusal(outcome):
            raise refusal
        return answer


def _refusal(outcome: CreateOutcome) -> ServiceError | None:
    """The error for an answer that was not created."""
    match outcome:
        case CreateOutcome.CREATED:
            return None
        case CreateOutcome.GONE:
            return session_not_found()
        case CreateOutcome.DUPLICATE:
            return _in_progress()
        case CreateOutcome.BUSY | CreateOutcome.CHANGED:
            return _busy()


def _in_progress() -> Conflict:
    return Conflict("request_in_progress", "A request with this idempotency key is still being checked.", retry_after=1)


def _busy() -> Conflict:
    return Conflict("session_busy", "This session's last question is still being answered.")
