"""Flow 2: a question becomes an answer. Sessions, turns, and the life of an answer from admission to the last event.

An answer belongs to the replica that took its question, for as long as it holds the session's lease. Its events go to a
log in the store before any reader sees them; readers, here or at any replica, read nothing but the log.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import TypeVar

import structlog

from model.conversation import Clip, Conversation, Turn
from model.engine.sampling_params import MAX_SEED, InvalidSampling, SamplingParams
from model.features import PackedFeatures
from service.answer import LiveAnswer
from service.encoding import Encoding, Progress, is_our_fault
from service.errors import (
    Conflict,
    InternalError,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServiceError,
    Unavailable,
    from_code,
)
from service.ids import new_id
from service.metrics import Metrics
from service.settings import Settings
from service.store import keys
from service.store.answers import AnswerStore, AnswerWrite
from service.store.event_log import LogEvent
from service.store.leases import Leases
from service.store.listing import Page
from service.store.records import (
    AnswerRecord,
    FrameRequest,
    MessageRecord,
    Sampling,
    SessionRecord,
    VideoRecord,
)
from service.store.sessions import SessionStore
from service.store.videos import VideoStore
from service.workers.pool import Pool
from service.workers.protocol import Delta, Generate, ModelInfo, Refused

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

_CHECK_TIMEOUT = 15.0  # seconds a question waits for a worker to look at its length
_WRITE_PATIENCE = 30.0  # seconds an unreachable store is waited for before its answers are given up
_WRITE_RETRY = 0.25
_IDLE = 1.0  # seconds between two looks at a log in which nothing happens


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a user asks, and the sampling fields they set; None takes the model's default."""

    content: str
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None


class Chat:
    """Sessions and answers of one replica."""

    def __init__(
        self,
        *,
        settings: Settings,
        pool: Pool,
        encoding: Encoding,
        videos: VideoStore,
        sessions: SessionStore,
        answers: AnswerStore,
        leases: Leases,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._encoding = encoding
        self._videos = videos
        self._sessions = sessions
        self._answers = answers
        self._leases = leases
        self._metrics = metrics
        self._live: dict[str, LiveAnswer] = {}
        self._changed: asyncio.Queue[LiveAnswer] = asyncio.Queue()
        self._num_admitted = 0
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to take what the workers produce and to keep leases alive."""
        self._loops = [asyncio.create_task(loop()) for loop in (self._listen, self._write, self._beat)]

    async def close(self) -> None:
        """End every answer that still runs, marked as ours to blame, and stop."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        answers = list(self._live.values())
        for live in answers:
            self._end_with_error(live, InternalError("worker_lost", "The service is shutting down."))
            self._forget(live)
        if writes := [write for live in answers if (write := live.take_unwritten()) is not None]:
            with contextlib.suppress(Unavailable):
                await self._answers.write(writes)

    # -- sessions

    async def create_session(
        self, tenant: str, *, video_ids: tuple[str, ...], model: str | None, system: str, frames: FrameRequest
    ) -> SessionRecord:
        """Open a conversation about videos.

        Raises:
            ServiceError: an unknown video or model, or a video that cannot be used.
        """
        info = await self._encoding.model()
        if model is not None and model != info.name:
            raise NotFound("model_not_found", f"This server serves the model {info.name!r}.", param="model")
        for video in await self._videos_of(tenant, video_ids):
            if video.error is not None and not is_our_fault(video.error.code):
                raise InvalidRequest(video.error.code, video.error.message, param="video_ids")
        record = SessionRecord(
            id=new_id("ses"),
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
            await self._stop(tenant, running)

    async def erase_sessions_of_video(self, tenant: str, video_id: str) -> None:
        """Erase all sessions that talk about a video."""
        for session_id in await self._videos.session_ids(tenant, video_id):
            with contextlib.suppress(NotFound):
                await self.erase_session(tenant, session_id)

    # -- answers, for those who ask and read

    async def ask(self, tenant: str, session_id: str, question: Question) -> AnswerRecord:
        """Accept a question: when this returns, its answer is being worked on and can be followed.

        Raises:
            ServiceError: a refusal; nothing has been begun.
        """
        if self._num_admitted >= self._settings.max_pending_answers:
            self._metrics.admission_rejections.labels("max_pending_answers").inc()
            raise Overloaded("overloaded", "Too many answers are being given; try again in a moment.")
        self._num_admitted += 1
        admitted = True
        try:
            live = await self._accept(tenant, session_id, question)
            self._live[live.id] = live
            admitted = False  # from here on the answer's end gives the place back
        finally:
            if admitted:
                self._num_admitted -= 1
        live.work = asyncio.create_task(self._prepare(live), name=f"prepare {live.id}")
        live.deadline = asyncio.get_running_loop().call_later(self._settings.answer_timeout, self._expire, live)
        self._watch_absence(live)
        return live.record

    async def answer(self, tenant: str, answer_id: str) -> AnswerRecord:
        """An answer's record.

        Raises:
            NotFound: there is no such answer.
        """
        record = await self._answers.get(tenant, answer_id)
        if record is None:
            raise NotFound("answer_not_found", "There is no answer with this id.", param="answer_id")
        return record

    async def cancel(self, tenant: str, answer_id: str) -> AnswerRecord:
        """Stop an answer; what it has said so far is kept. An answer that has ended stays as it is.

        Raises:
            NotFound: there is no such answer.
        """
        record = await self.answer(tenant, answer_id)
        if record.status == "in_progress":
            await self._stop(tenant, answer_id)
        return record

    async def follow(self, tenant: str, answer_id: str, *, after: int) -> AsyncGenerator[LogEvent | None, None]:
        """An answer's events after number `after` up to its end; None now and then while nothing happens."""
        with self._reading(answer_id):
            while True:
                events = await self._answers.read(tenant, answer_id, after=after, block=_IDLE)
                for event in events:
                    yield event
                    after = event.number
                    if event.name in {"done", "error"}:
                        return
                if events:
                    continue
                if answer_id not in self._live:
                    if (ending := await self._orphaned(tenant, answer_id, number=after + 1)) is not None:
                        yield ending
                        return
                    await self._answers.mark_read(tenant, answer_id)
                yield None

    # -- admission

    async def _accept(self, tenant: str, session_id: str, question: Question) -> LiveAnswer:
        session = await self.session(tenant, session_id)
        info = await self._encoding.model()
        params = _sampling(question, default=info.default_sampling)
        videos = await self._videos_of(tenant, session.video_ids)
        for video in videos:
            if video.error is not None and not is_our_fault(video.error.code):
                raise InvalidRequest(video.error.code, video.error.message, param="video_ids")
        answer_id = new_id("ans")
        lease = keys.session_lease(tenant, session_id)
        if not await self._leases.acquire(lease, answer_id):
            raise Conflict("session_busy", "This session's last question is still being answered.")
        try:
            history = await self._sessions.messages(tenant, session_id)
            turns = (*(Turn(role=m.role, text=m.content) for m in history), Turn(role="user", text=question.content))
            await self._check_length(session, videos, turns, info)
            record = AnswerRecord(
                id=answer_id,
                session_id=session_id,
                question=question.content,
                sampling=Sampling.model_validate({field: getattr(params, field) for field in Sampling.model_fields}),
                created_at=time.time(),
            )
            live = LiveAnswer(
                tenant=tenant,
                record=record,
                session=session,
                videos=tuple(videos),
                turns=turns,
                params=params,
                num_messages=len(history),
            )
            await self._answers.create(tenant, record, opening=live.opening())
        except BaseException:
            await asyncio.shield(self._leases.release(lease, answer_id))
            raise
        return live

    async def _videos_of(self, tenant: str, video_ids: tuple[str, ...]) -> list[VideoRecord]:
        videos = await self._videos.get_many(tenant, video_ids)
        if missing := set(video_ids) - {video.id for video in videos}:
            raise NotFound("video_not_found", f"There is no video {sorted(missing)[0]}.", param="video_ids")
        return videos

    async def _check_length(
        self, session: SessionRecord, videos: list[VideoRecord], turns: tuple[Turn, ...], info: ModelInfo
    ) -> None:
        """Refuse a conversation that is too long, counted with the longest the frames' times can be written."""
        count = session.frames.count or info.frame_spec.count
        clips = tuple(
            Clip(frame_indices=((video.num_frames or 1) - 1,) * count, fps=video.fps or 1.0) for video in videos
        )
        conversation = Conversation(clips=clips, turns=turns, system=session.system)
        try:
            await asyncio.wait_for(self._pool.check(conversation), _CHECK_TIMEOUT)
        except TimeoutError:
            raise Unavailable("model_unavailable", "No worker is ready; try again in a moment.") from None

    # -- the work

    async def _prepare(self, live: LiveAnswer) -> None:
        """Get the features of the session's videos and hand the question to a worker."""

        def on_progress(progress: Progress) -> None:
            live.add_progress(progress.video_id, progress.stage, progress.fraction)
            self._changed.put_nowait(live)

        try:
            packed: list[tuple[str, PackedFeatures]] = [
                await self._encoding.ensure(live.tenant, video, live.session.frames, on_progress=on_progress)
                for video in live.videos
            ]
            if live.ended:
                return
            live.set_frames([features for _, features in packed])
            rates = [await self._fps(live.tenant, video) for video in live.videos]
            clips = tuple(
                Clip(frame_indices=features.frame_indices, fps=fps)
                for fps, (_, features) in zip(rates, packed, strict=True)
            )
            self._pool.generate(
                Generate(
                    job_id=live.id,
                    conversation=Conversation(clips=clips, turns=live.turns, system=live.session.system),
                    features=tuple(features.blob for _, features in packed),
                    feature_keys=tuple(key for key, _ in packed),
                    params=live.params,
                )
            )
        except ServiceError as error:
            self._end_with_error(live, error)
        except Exception:  # noqa: BLE001  a reader waits: whatever happened, the answer must end
            _log.exception("answer_failed_unexpectedly", answer=live.id)
            self._end_with_error(live, InternalError("internal_error", "Something went wrong on our side."))

    async def _fps(self, tenant: str, video: VideoRecord) -> float:
        if video.fps is None:  # it was still unknown when the question came
            video = await self._videos.get(tenant, video.id) or video
        return video.fps or 1.0

    async def _listen(self) -> None:
        while True:
            output = await self._pool.outputs.get()
            live = self._live.get(output.job_id)
            if live is None or live.ended:
                continue
            if isinstance(output, Refused):
                self._end_with_error(live, from_code(output.code, output.message))
            else:
                self._gain(live, output)

    def _gain(self, live: LiveAnswer, delta: Delta) -> None:
        live.add_delta(delta.text, num_tokens=len(delta.token_ids), metrics=self._metrics)
        if delta.finish_reason == "error":
            self._end_with_error(live, InternalError("engine_error", "The model failed on this question."))
        elif delta.finish_reason is not None:
            live.finish(delta.finish_reason, num_prompt_tokens=delta.num_prompt_tokens)
        self._changed.put_nowait(live)

    async def _write(self) -> None:
        """Put what the answers gained into the store: all there is, in one round trip, in order."""
        while True:
            changed = {(live := await self._changed.get()).id: live}
            while not self._changed.empty():
                changed[(live := self._changed.get_nowait()).id] = live
            writes = [write for live in changed.values() if (write := live.take_unwritten()) is not None]
            lost = await self._write_patiently(writes)
            for live in changed.values():
                if live.id in lost:
                    self._pool.abort(live.id)
                if live.ended or live.id in lost:
                    self._forget(live)

    async def _write_patiently(self, writes: list[AnswerWrite]) -> set[str]:
        """Write, again and again while the store is away; returns the answers that have no place there any more."""
        give_up = time.monotonic() + _WRITE_PATIENCE
        while True:
            try:
                kept = await self._answers.write(writes)
            except Unavailable:
                if time.monotonic() > give_up:
                    _log.error("answers_given_up", num_answers=len(writes))
                    return {write.answer_id for write in writes}
                await asyncio.sleep(_WRITE_RETRY)
            else:
                return {write.answer_id for write, is_kept in zip(writes, kept, strict=True) if not is_kept}

    def _forget(self, live: LiveAnswer) -> None:
        if self._live.pop(live.id, None) is None:
            return
        self._num_admitted -= 1
        live.close()
        live.observe(self._metrics)

    # -- endings that nobody generated

    async def _stop(self, tenant: str, answer_id: str) -> None:
        live = self._live.get(answer_id)
        if live is None:
            await self._answers.ask_to_cancel(tenant, answer_id)  # its owner looks at every heartbeat
        else:
            self._abort(live)

    def _abort(self, live: LiveAnswer) -> None:
        if live.is_generating:
            self._pool.abort(live.id)
        elif not live.ended:
            live.finish("abort", num_prompt_tokens=0)
            live.close()
            self._changed.put_nowait(live)

    def _expire(self, live: LiveAnswer) -> None:
        self._pool.abort(live.id)
        self._end_with_error(live, Overloaded("deadline_exceeded", "The answer took longer than this server allows."))

    def _end_with_error(self, live: LiveAnswer, error: ServiceError) -> None:
        if not live.ended:
            live.fail(error)
            self._changed.put_nowait(live)

    async def _orphaned(self, tenant: str, answer_id: str, *, number: int) -> LogEvent | None:
        """The last event of an answer that ends no more, because its owner died or it was erased."""
        record = await self._answers.get(tenant, answer_id)
        if record is not None and record.status == "in_progress":
            if await self._leases.holder(keys.session_lease(tenant, record.session_id)) == answer_id:
                return None
            record = await self._answers.get(tenant, answer_id)  # it may have ended between the two looks
        if record is not None and record.status != "in_progress":
            return None  # the end is in the log; the next look finds it
        code = "answer_not_found" if record is None else "answer_lost"
        error = InternalError(code, "The answer was interrupted; ask again.")
        return LogEvent(number, "error", error.envelope())

    # -- presence

    @contextlib.contextmanager
    def _reading(self, answer_id: str) -> Iterator[None]:
        live = self._live.get(answer_id)
        if live is not None:
            live.num_readers += 1
        try:
            yield
        finally:
            if live is not None:
                live.num_readers -= 1
                self._watch_absence(live)

    def _watch_absence(self, live: LiveAnswer) -> None:
        """If nobody reads an answer any more, give readers the grace period to come back."""
        if live.num_readers == 0 and not live.ended and live.absence is None:
            live.absence = asyncio.create_task(self._abort_if_absent(live))

    async def _abort_if_absent(self, live: LiveAnswer) -> None:
        await asyncio.sleep(self._settings.disconnect_grace)
        live.absence = None
        if live.ended or live.num_readers:
            return
        with contextlib.suppress(ServiceError):
            if await self._answers.was_read(live.tenant, live.id):  # at another replica
                self._watch_absence(live)
                return
        _log.info("answer_abandoned", answer=live.id)
        self._abort(live)

    async def _beat(self) -> None:
        """Keep the leases of our answers, and look for words left by other replicas."""
        while True:
            await asyncio.sleep(self._settings.lease_seconds / 3)
            for live in list(self._live.values()):
                with contextlib.suppress(ServiceError):
                    await self._leases.renew(keys.session_lease(live.tenant, live.session.id), live.id)
                    if await self._answers.is_cancelled(live.tenant, live.id):
                        self._abort(live)


def _sampling(question: Question, *, default: SamplingParams) -> SamplingParams:
    try:
        return SamplingParams(
            temperature=_chosen(question.temperature, default.temperature),
            top_k=_chosen(question.top_k, default.top_k),
            top_p=_chosen(question.top_p, default.top_p),
            repetition_penalty=_chosen(question.repetition_penalty, default.repetition_penalty),
            max_tokens=_chosen(question.max_tokens, default.max_tokens),
            seed=_chosen(question.seed, secrets.randbelow(MAX_SEED)),
            stop=_chosen(question.stop, default.stop),
        )
    except InvalidSampling as error:
        raise InvalidRequest("invalid_value", str(error), param=error.param) from None


def _chosen(value: _T | None, otherwise: _T) -> _T:
    return otherwise if value is None else value
