"""Flow 2: a question becomes an answer. Sessions and their turns, and what is checked before an answer is begun."""

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from structlog.contextvars import bind_contextvars

from model.text.conversation import Clip, Conversation, Turn
from service.access.callers import Caller
from service.access.limits import ConcurrencyLimit
from service.answers.admission import Place
from service.answers.generation import LiveAnswer
from service.answers.runner import Answering, deadline_exceeded
from service.answers.sampling import SamplingRequest, sampling_params
from service.drain import Drain
from service.errors import Conflict, Forbidden, NotFound, Unavailable
from service.ids import new_id
from service.store import keys
from service.store.answers import AnswerStore
from service.store.idempotency import IdempotencyStore, Repeatable
from service.store.leases import Leases
from service.store.listing import Page
from service.store.records import AnswerRecord, FrameRequest, MessageRecord, SessionRecord, VideoRecord
from service.store.sessions import SessionStore
from service.store.videos import VideoStore
from service.videos.preparation import Encoding, check_usable
from service.workers.pool import Pool
from service.workers.protocol import ModelInfo

_CHECK_TIMEOUT = 15.0  # seconds a question waits for a worker to look at its length


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question and how to answer it."""

    content: str
    sampling: SamplingRequest
    priority: int = 0
    timeout: float | None = None
    """Seconds from now after which the answer is of no use any more."""


class Chat:
    """Sessions and answers of one replica."""

    def __init__(
        self,
        *,
        answering: Answering,
        drain: Drain,
        pool: Pool,
        encoding: Encoding,
        videos: VideoStore,
        sessions: SessionStore,
        answers: AnswerStore,
        leases: Leases,
        concurrency_limit: ConcurrencyLimit,
        idempotency: IdempotencyStore,
    ) -> None:
        self._answering = answering
        self._drain = drain
        self._pool = pool
        self._encoding = encoding
        self._videos = videos
        self._sessions = sessions
        self._answers = answers
        self._leases = leases
        self._concurrency_limit = concurrency_limit
        self._idempotency = idempotency

    # -- sessions

    async def create_session(
        self,
        tenant: str,
        *,
        video_ids: tuple[str, ...],
        model: str | None,
        system: str,
        frames: FrameRequest,
        repeatable: Repeatable | None = None,
    ) -> SessionRecord:
        """Open a conversation about videos; a `repeatable` request that comes again gets the session it got before.

        Raises:
            ServiceError: an unknown video or model, or a video that cannot be used.
        """
        session_id = new_id("ses")
        if repeatable is not None:
            session_id = await self._idempotency.claim(tenant, repeatable, result_id=session_id)
            if known := await self._sessions.get(tenant, session_id):
                return known
        info = await self._encoding.model()
        if model is not None and model != info.name:
            raise NotFound("model_not_found", f"This server serves the model {info.name!r}.", param="model")
        for video in await self._videos_of(tenant, video_ids):
            check_usable(video)
        record = SessionRecord(
            id=session_id,
            video_ids=video_ids,
            model=info.name,
            system=system,
            frames=frames,
            created_at=time.time(),
        )
        await self._sessions.create(tenant, record)
        return record

    async def session(self, tenant: str, session_id: str) -> SessionRecord:
        """A session's record.

        Raises:
            NotFound: there is no such session.
        """
        record = await self._sessions.get(tenant, session_id)
        if record is None:
            raise NotFound("session_not_found", "There is no session with this id.", param="session_id")
        return record

    async def running_answers(self, tenant: str) -> dict[str, str]:
        """The sessions in which an answer is being given, and that answer."""
        return await self._answers.running(tenant)

    async def list_sessions(self, tenant: str, *, limit: int, after: str | None) -> tuple[list[SessionRecord], Page]:
        """Sessions, newest first."""
        page = await self._sessions.page(tenant, limit=limit, after=after)
        return await self._sessions.get_many(tenant, page.ids), page

    async def messages(self, tenant: str, session_id: str) -> list[MessageRecord]:
        """A session's turns, oldest first.

        Raises:
            NotFound: there is no such session.
        """
        await self.session(tenant, session_id)
        return await self._sessions.messages(tenant, session_id)

    async def erase_session(self, tenant: str, session_id: str) -> None:
        """Erase a session, its messages and its answers; one that is being given is stopped.

        Raises:
            NotFound: there is no such session.
        """
        record = await self.session(tenant, session_id)
        running = await self._leases.holder(keys.session_lease(tenant, session_id))
        await self._sessions.erase(tenant, record)
        if running is not None:
            self._answering.forget(running)

    async def erase_sessions_of_video(self, tenant: str, video_id: str) -> None:
        """Erase all sessions that talk about a video."""
        for session_id in await self._videos.session_ids(tenant, video_id):
            with contextlib.suppress(NotFound):
                await self.erase_session(tenant, session_id)

    # -- questions

    async def ask(
        self, caller: Caller, session_id: str, question: Question, *, repeatable: Repeatable | None = None
    ) -> AnswerRecord:
        """Accept a question: when this returns, its answer is being worked on and can be followed.

        A `repeatable` request that comes again gets the answer it got before, at whatever point that is.

        Raises:
            ServiceError: a refusal; nothing has been begun.
        """
        self._drain.check()
        answer_id = new_id("ans")
        deadline = None if question.timeout is None else time.time() + question.timeout
        if question.priority > caller.limits.max_priority:
            raise Forbidden(
                "priority_too_high",
                f"This key may ask for a priority of {caller.limits.max_priority} at most.",
                param="priority",
            )
        if repeatable is not None:
            answer_id = await self._idempotency.claim(caller.tenant, repeatable, result_id=answer_id)
            if known := await self._answers.get(caller.tenant, answer_id):
                return known
        bind_contextvars(answer_id=answer_id)
        with self._answering.place(question.sampling.num_beams or 1) as place:
            async with self._concurrency_limit.count_answer(caller, answer_id):
                live = await self._accept(
                    caller.tenant, session_id, question, place=place, answer_id=answer_id, deadline=deadline
                )
                self._answering.begin(live)
        return live.record

    async def _accept(
        self,
        tenant: str,
        session_id: str,
        question: Question,
        *,
        place: Place,
        answer_id: str,
        deadline: float | None,
    ) -> LiveAnswer:
        session = await self.session(tenant, session_id)
        info = await self._encoding.model()
        params = sampling_params(question.sampling, default=info.default_sampling)
        videos = await self._videos_of(tenant, session.video_ids)
        for video in videos:
            check_usable(video)
            await self._encoding.check_there(tenant, video, session.frames)
        lease = keys.session_lease(tenant, session_id)
        if not await self._leases.acquire(lease, answer_id):
            if await self._leases.holder(lease) == answer_id:
                raise _in_progress()
            raise Conflict("session_busy", "This session's last question is still being answered.")
        try:
            if await self._answers.get(tenant, answer_id) is not None:  # the same request was quicker
                raise _in_progress()
            history = await self._sessions.messages(tenant, session_id)
            turns = (*(Turn(role=m.role, text=m.content) for m in history), Turn(role="user", text=question.content))
            asked = longest(videos, turns, system=session.system, num_frames=session.frames.count, info=info)
            num_tokens = await check_length(self._pool, asked, deadline=deadline)
            self._answering.widen(place, num_tokens=num_tokens)
            record = AnswerRecord(
                id=answer_id,
                session_id=session_id,
                question=question.content,
                sampling=params,
                created_at=time.time(),
                priority=question.priority,
                deadline=deadline,
            )
            live = LiveAnswer(
                tenant=tenant,
                record=record,
                session=session,
                videos=tuple(videos),
                turns=turns,
                params=params,
                num_messages=len(history),
                place=place,
            )
            if not await self._answers.create(
                tenant,
                record,
                opening=live.opening(),
                num_messages=len(history),
                owner=live.owner,
                lease_seconds=self._leases.seconds,
            ):
                raise Conflict("session_busy", "This session went on while the question was looked at.")
        except BaseException:
            await asyncio.shield(self._leases.release(lease, answer_id))
            raise
        return live

    async def _videos_of(self, tenant: str, video_ids: tuple[str, ...]) -> list[VideoRecord]:
        videos = await self._videos.get_many(tenant, video_ids)
        if missing := set(video_ids) - {video.id for video in videos}:
            raise NotFound("video_not_found", f"There is no video {sorted(missing)[0]}.", param="video_ids")
        return videos


def longest(
    videos: Sequence[VideoRecord], turns: tuple[Turn, ...], *, system: str, num_frames: int | None, info: ModelInfo
) -> Conversation:
    """A conversation that takes as many tokens as one about these videos can, whichever frames are sampled.

    `num_frames` is how many are wanted of each; None is as many as the model sees by default.
    """
    count = num_frames or info.frame_spec.count
    clips = tuple(Clip(frame_indices=((video.num_frames or 1) - 1,) * count, fps=video.fps or 1.0) for video in videos)
    return Conversation(clips=clips, turns=turns, system=system)


async def check_length(pool: Pool, conversation: Conversation, *, deadline: float | None = None) -> int:
    """A conversation's tokens; one that is too long for the model is refused.

    Raises:
        ServiceError: it is, or no worker can tell, or the time until `deadline` is up.
    """
    time_left = math.inf if deadline is None else deadline - time.time()
    try:
        return await asyncio.wait_for(pool.check(conversation), min(_CHECK_TIMEOUT, time_left))
    except TimeoutError:
        if deadline is not None and time.time() >= deadline:
            raise deadline_exceeded() from None
        raise Unavailable("model_unavailable", "No worker is ready; try again in a moment.") from None


def _in_progress() -> Conflict:
    return Conflict(
        "request_in_progress", "The same request, by its idempotency key, is being looked at.", retry_after=1
    )
