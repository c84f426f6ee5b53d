"""Answers in the making: from the admitted question to the last event in the log, and reading along.

An answer belongs to the replica that took its question, for as long as it holds the session's lease. Its events go to a
log in the store before any reader sees them; readers, here or at any replica, read nothing but the log.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator

import structlog

from model.conversation import Clip, Conversation
from model.features import PackedFeatures
from service.admission import Admission, Load, Place
from service.answer import LiveAnswer, lost_answer
from service.encoding import Encoding, Progress
from service.errors import InternalError, NotFound, Overloaded, ServiceError, Unavailable, from_code
from service.metrics import Metrics
from service.settings import Settings
from service.store import keys
from service.store.answers import AnswerStore, AnswerWrite
from service.store.event_log import LogEvent
from service.store.leases import Leases
from service.store.records import AnswerRecord, VideoRecord
from service.store.videos import VideoStore
from service.workers.pool import Pool
from service.workers.protocol import Delta, Generate, Refused

_log = structlog.get_logger(__name__)

_WRITE_PATIENCE = 30.0  # seconds an unreachable store is waited for before its answers are given up
_WRITE_RETRY = 0.25
_CLOSE_TIMEOUT = 2.0
_ARRIVAL = 5.0  # seconds whoever has just asked gets at least to begin to read
_IDLE = 1.0  # seconds between two looks at a log in which nothing happens


class Answering:
    """The answers that this replica gives."""

    def __init__(
        self,
        *,
        settings: Settings,
        pool: Pool,
        encoding: Encoding,
        videos: VideoStore,
        answers: AnswerStore,
        leases: Leases,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._encoding = encoding
        self._videos = videos
        self._answers = answers
        self._leases = leases
        self._metrics = metrics
        self._live: dict[str, LiveAnswer] = {}
        self._changed: asyncio.Queue[LiveAnswer] = asyncio.Queue()
        self._admission = Admission(settings, metrics)
        self._admitting: set[Place] = set()
        self._loops: list[asyncio.Task[None]] = []

        metrics.num_queued_sequences.set_function(lambda: self.load.num_sequences)
        metrics.num_queued_tokens.set_function(lambda: self.load.num_tokens)

    def start(self) -> None:
        """Begin to take what the workers produce and to keep leases alive."""
        self._loops = [asyncio.create_task(_for_ever(loop)) for loop in (self._listen, self._write, self._beat)]

    async def close(self) -> None:
        """End every answer that still runs, marked as ours to blame, and stop."""
        for live in list(self._live.values()):
            self._end_with_error(live, InternalError("worker_lost", "The service is shutting down."))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.join(), _CLOSE_TIMEOUT)
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)

    # -- for those who ask

    @contextlib.contextmanager
    def place(self, num_sequences: int) -> Iterator[Place]:
        """A place for one more answer, while its question is looked at; `begin` takes it over.

        Raises:
            Overloaded: there is none.
        """
        self._admission.check_sequences(self.load, num_sequences=num_sequences)
        place = Place(num_sequences)
        self._admitting.add(place)
        try:
            yield place
        finally:
            self._admitting.remove(place)

    def widen(self, place: Place, *, num_tokens: int) -> None:
        """Let a place have the room that its prompt needs, now that its tokens are counted.

        Raises:
            Overloaded: there is no room for them.
        """
        self._admission.check_tokens(self.load, num_tokens=num_tokens)
        place.num_tokens = num_tokens

    @property
    def load(self) -> Load:
        """How many answers there are, and how much of them waits."""
        waiting = [*self._admitting, *(live.place for live in self._live.values() if live.is_waiting)]
        return Load(
            num_answers=len(self._admitting) + len(self._live),
            num_sequences=sum(place.num_sequences for place in waiting),
            num_tokens=sum(place.num_tokens for place in waiting),
        )

    def begin(self, live: LiveAnswer) -> None:
        """Work on an admitted answer until it ends, whoever asks for it or leaves."""
        self._live[live.id] = live
        live.work = asyncio.create_task(self._prepare(live), name=f"prepare {live.id}")
        live.deadline = asyncio.get_running_loop().call_later(self._time_left(live.record), self._expire, live)
        self._watch_absence(live, grace=max(self._settings.disconnect_grace, _ARRIVAL))

    def _time_left(self, record: AnswerRecord) -> float:
        """Seconds until an answer that has not ended is ended: the client's wish, within what the server allows."""
        wished = math.inf if record.deadline is None else record.deadline - time.time()
        return max(0.0, min(self._settings.answer_timeout, wished))

    async def answer(self, tenant: str, answer_id: str) -> AnswerRecord:
        """An answer's record.

        Raises:
            NotFound: there is no such answer.
        """
        record = await self._answers.get(tenant, answer_id)
        if record is None:
            raise NotFound("answer_not_found", "There is no answer with this id.", param="answer_id")
        if record.status == "in_progress" and not await self._goes_on(tenant, record):
            record = await self._answers.get(tenant, answer_id) or record
        return record

    async def cancel(self, tenant: str, answer_id: str) -> AnswerRecord:
        """Stop an answer; what it has said so far is kept. An answer that has ended stays as it is.

        Raises:
            NotFound: there is no such answer.
        """
        record = await self.answer(tenant, answer_id)
        if record.status == "in_progress":
            await self.stop(tenant, answer_id)
        return record

    async def follow(self, tenant: str, answer_id: str, *, after: int) -> AsyncGenerator[LogEvent | None, None]:
        """An answer's events after number `after` up to its end; None now and then while nothing happens."""
        is_last_look = False
        with self._reading(answer_id):
            while True:
                events = await self._answers.read(tenant, answer_id, after=after, block=0 if is_last_look else _IDLE)
                for event in events:
                    yield event
                    after = event.number
                    if event.name in {"done", "error"}:
                        return
                if not events and is_last_look:
                    return
                if answer_id not in self._live:
                    await self._answers.mark_read(tenant, answer_id)  # its owner cannot see us, however much we read
                    if not events:
                        is_last_look = (await self.answer(tenant, answer_id)).status != "in_progress"
                yield None

    async def _goes_on(self, tenant: str, record: AnswerRecord) -> bool:
        """Whether a replica gives the answer. If its owner died, the end is written for it: nobody waits on."""
        lease = keys.session_lease(tenant, record.session_id)
        if record.id in self._live or await self._leases.holder(lease) == record.id:
            return True
        again = await self._answers.get(tenant, record.id)  # it may have ended between the two looks
        if again is not None and again.status == "in_progress":
            number = await self._answers.last_number(tenant, record.id) + 1
            await self._answers.write([lost_answer(tenant, again, _lost(), number=number)])
        return False

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
            rates = [await self._fps(live.tenant, video) for video in live.videos]
            if live.ended:
                return
            live.set_frames([features for _, features in packed])  # no await from here: a stop finds it in the pool
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
                    priority=live.record.priority,
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
            live.finish(
                delta.finish_reason,
                num_prompt_tokens=delta.num_prompt_tokens,
                num_cached_tokens=delta.num_cached_tokens,
            )
        self._changed.put_nowait(live)

    async def _write(self) -> None:
        """Put what the answers gained into the store: all there is, in one round trip, in order."""
        while True:
            taken = [await self._changed.get()]
            while not self._changed.empty():
                taken.append(self._changed.get_nowait())
            changed = {live.id: live for live in taken}
            writes = [write for live in changed.values() if (write := live.take_unwritten()) is not None]
            lost = await self._write_patiently(writes)
            for live in changed.values():
                if live.id in lost:
                    self._pool.abort(live.id)
                if live.is_settled or live.id in lost:
                    self._forget(live)
            for _ in taken:
                self._changed.task_done()

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
        live.close()
        live.observe(self._metrics)
        self._admission.answer_ended()

    # -- endings that nobody generated

    async def stop(self, tenant: str, answer_id: str) -> None:
        """Stop an answer, wherever it is given."""
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
        self._end_with_error(live, deadline_exceeded())

    def _end_with_error(self, live: LiveAnswer, error: ServiceError) -> None:
        if not live.ended:
            live.fail(error)
            self._changed.put_nowait(live)

    # -- presence

    @contextlib.contextmanager
    def _reading(self, answer_id: str) -> Iterator[None]:
        live = self._live.get(answer_id)
        if live is not None:
            live.num_readers += 1
            if live.absence is not None:
                live.absence.cancel()  # who leaves later is given the whole grace period again
                live.absence = None
        try:
            yield
        finally:
            if live is not None:
                live.num_readers -= 1
                self._watch_absence(live, grace=self._settings.disconnect_grace)

    def _watch_absence(self, live: LiveAnswer, *, grace: float) -> None:
        """If nobody reads an answer any more, give readers the grace period to come back."""
        if live.num_readers == 0 and not live.ended and live.absence is None:
            live.absence = asyncio.create_task(self._abort_if_absent(live, grace=grace))

    async def _abort_if_absent(self, live: LiveAnswer, *, grace: float) -> None:
        await asyncio.sleep(grace)
        with contextlib.suppress(ServiceError):
            while await self._answers.was_read(live.tenant, live.id):  # noqa: ASYNC110  at another replica
                await asyncio.sleep(max(grace, _IDLE))
        live.absence = None
        _log.info("answer_abandoned", answer=live.id)
        self._abort(live)

    async def _beat(self) -> None:
        """Keep the leases of our answers, and look for words left by other replicas."""
        while True:
            await asyncio.sleep(self._settings.lease_seconds / 3)
            for live in [live for live in self._live.values() if not live.ended]:
                with contextlib.suppress(ServiceError):
                    if not await self._keep(live):
                        self._pool.abort(live.id)
                        self._end_with_error(live, _lost())
                    elif await self._answers.is_cancelled(live.tenant, live.id):
                        self._abort(live)

    async def _keep(self, live: LiveAnswer) -> bool:
        """Prolong an answer's lease; one that ran out while the store was away is taken again if nobody has it."""
        lease = keys.session_lease(live.tenant, live.session.id)
        if await self._leases.renew(lease, live.id) or self._has_ended(live):
            return True
        is_ours = await self._leases.acquire(lease, live.id)
        if self._has_ended(live):  # meanwhile, and the session was given free with it
            await self._leases.release(lease, live.id)
            return True
        return is_ours

    def _has_ended(self, live: LiveAnswer) -> bool:
        return live.ended or live.id not in self._live


async def _for_ever(loop: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a loop that all answers depend on; a mistake in it must not silence every reader."""
    while True:
        try:
            await loop()
        except Exception:  # noqa: BLE001
            _log.exception("loop_failed", loop=loop.__name__)
            await asyncio.sleep(_WRITE_RETRY)


def deadline_exceeded() -> Overloaded:
    """The end of an answer whose time is up, begun or not."""
    return Overloaded("deadline_exceeded", "The answer took longer than its `timeout`, or than this server allows.")


def _lost() -> InternalError:
    return InternalError("answer_lost", "The answer was interrupted; ask again.")
