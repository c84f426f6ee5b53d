"""Answers in the making: from the admitted question to the last event in the log, and reading along.

An answer belongs to the replica that took its question, until that dies or leaves: then to whichever replica takes it
over. Its events go to a log in the store before any reader sees them; readers, here or at any replica, read nothing but
the log.
"""

import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import TypeVar

import structlog
from structlog.contextvars import bound_contextvars

from model.features import PackedFeatures
from model.text.conversation import Clip, Conversation
from service.answers.admission import Admission, Load, Place
from service.answers.generation import LiveAnswer
from service.answers.takeover import Takeover
from service.errors import (
    InternalError,
    NotFound,
    Overloaded,
    ServiceError,
    StorageUnavailable,
    Unavailable,
    from_code,
)
from service.observability import tracing
from service.observability.logging import bound_ids
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.answers import AnswerStore, AnswerWrite, Hold
from service.store.event_log import LogEvent
from service.store.records import AnswerRecord, VideoRecord
from service.store.videos import VideoStore
from service.videos.preparation import Encoding, Progress
from service.workers.pool import Pool
from service.workers.protocol import Delta, Generate, Refused

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

_WRITE_PATIENCE = 30.0  # seconds an unreachable store is waited for before its answers are left to whoever finds them
_WRITE_RETRY = 0.25
_CLOSE_TIMEOUT = 2.0
_LEAVING_POLL = 0.05
_ARRIVAL = 5.0  # seconds whoever has just asked gets at least to begin to read
_IDLE = 1.0  # seconds between two looks at a log in which nothing happens
_READER_MARGIN = 2 * _IDLE  # seconds a reader at another replica may be late in saying that it is still there


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
        takeover: Takeover,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._encoding = encoding
        self._videos = videos
        self._answers = answers
        self._takeover = takeover
        self._metrics = metrics
        self._live: dict[str, LiveAnswer] = {}
        self._jobs: dict[str, LiveAnswer] = {}
        self._num_readers: Counter[str] = Counter()
        self._is_leaving = False
        self._is_closing = False
        self._changed: asyncio.Queue[LiveAnswer] = asyncio.Queue()
        self._admission = Admission(settings, metrics)
        self._admitting: set[Place] = set()
        self._loops: list[asyncio.Task[None]] = []

        metrics.num_queued_sequences.set_function(lambda: self.load.num_sequences)
        metrics.num_queued_tokens.set_function(lambda: self.load.num_tokens)

    def start(self) -> None:
        """Begin to take what the workers produce and to keep leases alive."""
        loops = (self._listen, self._write, self._beat, self._sweep)
        self._loops = [asyncio.create_task(_for_ever(loop)) for loop in loops]

    @property
    def num_running(self) -> int:
        """Answers that this replica gives, or is about to begin."""
        return len(self._admitting) + len(self._live)

    async def leave(self, *, patience: float, hurry: asyncio.Event) -> None:
        """Take over nothing more, wait for what runs and is read, and leave to other replicas what still runs then.

        It waits for `patience` seconds at most, and no longer once `hurry` is set.
        """
        self._is_leaving = True
        give_up = time.monotonic() + patience
        while (self.num_running or self._num_readers) and time.monotonic() < give_up and not hurry.is_set():  # noqa: ASYNC110
            await asyncio.sleep(_LEAVING_POLL)
        await self._hand_over()

    def dismiss(self) -> None:
        """Let the readers go: what they follow is given elsewhere, and they will ask there."""
        self._is_closing = True

    async def close(self) -> None:
        """Leave every answer that still runs to other replicas, or to the next start, and stop."""
        self.dismiss()
        await self._hand_over()
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
        self._jobs[live.owner] = live
        live.ids = bound_ids() | {
            "tenant": live.tenant,
            "session_id": live.session.id,
            "video_id": ",".join(live.session.video_ids),
            "answer_id": live.id,
        }
        live.trace = tracing.begin(f"chat {live.session.model}", _asked(live))
        with bound_contextvars(**live.ids), live.trace.current():
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
        if record.status == "in_progress":
            await self._care_for(tenant, answer_id)
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
        """An answer's events after number `after` up to its end; None now and then while nothing happens.

        When this replica leaves, they end without an end: the reader goes on at another one.
        """
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
                    if self._is_closing:
                        return
                    await self._say_it_is_read(tenant, answer_id)
                    if not events:
                        is_last_look = (await self.answer(tenant, answer_id)).status != "in_progress"
                yield None

    # -- answers that nobody gives

    async def _sweep(self) -> None:
        """Look for answers whose owner is gone, and go on with them, though nobody should be reading."""
        while True:
            await asyncio.sleep(self._settings.lease_seconds * random.uniform(0.25, 0.5))  # noqa: S311  spreads replicas
            if self._is_leaving or not self._pool.ready:
                continue
            with contextlib.suppress(ServiceError):
                for tenant, answer_id in await self._takeover.orphans():
                    await self._adopt(tenant, answer_id)

    async def _care_for(self, tenant: str, answer_id: str) -> None:
        """Somebody wants this answer: if nobody gives it, we do."""
        if answer_id in self._live or self._is_leaving or not self._pool.ready:
            return
        if not await self._answers.is_owned(tenant, answer_id):
            await self._adopt(tenant, answer_id)

    async def _adopt(self, tenant: str, answer_id: str) -> None:
        if self._is_leaving or answer_id in self._live:  # what we are still writing is not lost
            return
        taken = await self._takeover.take(tenant, answer_id)
        if taken is None:
            return
        live, obstacle = taken
        self.begin(live)
        if obstacle is not None:
            self._end_with_error(live, obstacle)

    async def _hand_over(self) -> None:
        """Let other replicas have what runs here, at once and from the last token on."""
        self._is_leaving = True
        for live in self._live.values():
            live.close()
            self._pool.abort(live.owner)
            self._jobs.pop(live.owner, None)  # what a worker says from here on is said again elsewhere
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.join(), _CLOSE_TIMEOUT)
        for live in list(self._live.values()):
            if not live.ended:
                _log.info("answer_handed_over", **live.ids)
            self._drop(live)
            with contextlib.suppress(ServiceError):  # then its lease runs out
                await self._answers.release(live.tenant, live.id, live.owner)

    # -- the work

    async def _prepare(self, live: LiveAnswer) -> None:
        """Get the features of the session's videos and hand the question to a worker."""

        def on_progress(progress: Progress) -> None:
            live.add_progress(progress.video_id, progress.stage, progress.fraction)
            self._changed.put_nowait(live)

        try:
            packed, rates = await self._patiently(lambda: self._features(live, on_progress))
            if live.ended:
                return
            live.set_frames([features for _, features in packed])  # no await from here: a stop finds it in the pool
            clips = tuple(
                Clip(frame_indices=features.frame_indices, fps=fps)
                for fps, (_, features) in zip(rates, packed, strict=True)
            )
            self._pool.generate(
                Generate(
                    job_id=live.owner,
                    conversation=Conversation(clips=clips, turns=live.turns, system=live.session.system),
                    features=tuple(features.blob for _, features in packed),
                    feature_keys=tuple(key for key, _ in packed),
                    cache_salt=live.tenant,
                    params=live.params,
                    output_token_ids=live.taken_token_ids,
                    priority=live.record.priority,
                )
            )
        except ServiceError as error:
            self._end_with_error(live, error)
        except Exception:  # noqa: BLE001  a reader waits: whatever happened, the answer must end
            _log.exception("answer_failed_unexpectedly")
            self._end_with_error(live, InternalError("internal_error", "Something went wrong on our side."))

    async def _features(
        self, live: LiveAnswer, on_progress: Callable[[Progress], None]
    ) -> tuple[list[tuple[str, PackedFeatures]], list[float]]:
        packed = [
            await self._encoding.ensure(live.tenant, video, live.session.frames, on_progress=on_progress)
            for video in live.videos
        ]
        return packed, [await self._fps(live.tenant, video) for video in live.videos]

    async def _patiently(self, prepare: Callable[[], Coroutine[None, None, _T]]) -> _T:
        """Do it again where the store is away for a while."""
        give_up = time.monotonic() + _WRITE_PATIENCE
        while True:
            try:
                return await prepare()
            except StorageUnavailable:
                if time.monotonic() > give_up:
                    raise
            await asyncio.sleep(_WRITE_RETRY)

    async def _fps(self, tenant: str, video: VideoRecord) -> float:
        if video.fps is None:  # it was still unknown when the question came
            video = await self._videos.get(tenant, video.id) or video
        return video.fps or 1.0

    async def _listen(self) -> None:
        while True:
            output = await self._pool.outputs.get()
            live = self._jobs.get(output.job_id)
            if live is None or live.ended:
                continue
            if isinstance(output, Refused):
                self._end_with_error(live, from_code(output.code, output.message))
            else:
                self._gain(live, output)

    def _gain(self, live: LiveAnswer, delta: Delta) -> None:
        if delta.queue_seconds is not None:
            live.admitted(queue_seconds=delta.queue_seconds, prefill_seconds=delta.running_seconds)
        live.add_delta(delta.text, token_ids=delta.token_ids, metrics=self._metrics)
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
            changed = {live.owner: live for live in taken}
            writes = [write for live in changed.values() if (write := live.take_unwritten()) is not None]
            holds = await self._write_patiently(writes)
            for live in changed.values():
                await self._learn(live, holds.get(live.owner, Hold.OURS))
            for _ in taken:
                self._changed.task_done()

    async def _write_patiently(self, writes: list[AnswerWrite]) -> dict[str, Hold]:
        """Write, again and again while the store is away; returns how it stands with each answer, by its owner."""
        give_up = time.monotonic() + _WRITE_PATIENCE
        while True:
            try:
                holds = await self._answers.write(writes)
            except Unavailable:
                if time.monotonic() > give_up:
                    _log.error("answers_given_up", num_answers=len(writes))
                    return {write.owner: Hold.LOST for write in writes}
                await asyncio.sleep(_WRITE_RETRY)
            else:
                return {write.owner: hold for write, hold in zip(writes, holds, strict=True)}

    async def _learn(self, live: LiveAnswer, hold: Hold) -> None:
        """What the store said of an answer of ours."""
        if hold is Hold.BROKEN:  # what readers have read is no longer in the log: say it again, from there on
            _log.warning("answer_log_broken", **live.ids)
            with contextlib.suppress(ServiceError):
                await self._answers.release(live.tenant, live.id, live.owner)
        if hold in {Hold.LOST, Hold.BROKEN}:
            self._drop(live)
        elif live.is_settled:
            if self._live.get(live.id) is live:
                live.observe(self._metrics)
                _log.info("answer_ended", **live.ids, **live.summary())
                self._admission.answer_ended()
            self._drop(live)
        elif hold is Hold.CANCELLED:
            self._abort(live)

    def _drop(self, live: LiveAnswer) -> None:
        """Have nothing more to do with an answer: it is over, or another's."""
        if self._jobs.pop(live.owner, None) is not None:
            self._pool.abort(live.owner)
        if self._live.get(live.id) is live:
            del self._live[live.id]
        live.close()

    # -- endings that nobody generated

    async def stop(self, tenant: str, answer_id: str) -> None:
        """Stop an answer, wherever it is given."""
        live = self._live.get(answer_id)
        if live is None:
            await self._answers.ask_to_cancel(tenant, answer_id)  # its owner learns of it when it writes
        else:
            self._abort(live)

    def forget(self, answer_id: str) -> None:
        """An answer was erased: whoever gives it learns so when it writes; if it is this replica, at once."""
        live = self._live.get(answer_id)
        if live is not None:
            self._drop(live)

    def _abort(self, live: LiveAnswer) -> None:
        if live.is_generating:
            self._pool.abort(live.owner)
        elif not live.ended:
            live.finish("abort", num_prompt_tokens=0)
            live.close()
            self._changed.put_nowait(live)

    def _expire(self, live: LiveAnswer) -> None:
        self._pool.abort(live.owner)
        self._end_with_error(live, deadline_exceeded())

    def _end_with_error(self, live: LiveAnswer, error: ServiceError) -> None:
        if not live.ended:
            live.fail(error)
            self._changed.put_nowait(live)

    # -- presence

    @contextlib.contextmanager
    def _reading(self, answer_id: str) -> Iterator[None]:
        self._num_readers[answer_id] += 1
        live = self._live.get(answer_id)
        if live is not None and live.absence is not None:
            live.absence.cancel()  # who leaves later is given the whole grace period again
            live.absence = None
        try:
            yield
        finally:
            self._num_readers[answer_id] -= 1
            if not self._num_readers[answer_id]:
                del self._num_readers[answer_id]
                live = self._live.get(answer_id)
                if live is not None:
                    self._watch_absence(live, grace=self._settings.disconnect_grace)

    async def _say_it_is_read(self, tenant: str, answer_id: str) -> None:
        """Tell the owner, who cannot see our readers however much they read."""
        seconds = self._settings.disconnect_grace + _READER_MARGIN
        await self._answers.mark_read(tenant, answer_id, seconds=seconds)

    def _watch_absence(self, live: LiveAnswer, *, grace: float) -> None:
        """If nobody reads an answer any more, give readers the grace period to come back."""
        if not self._num_readers[live.id] and not live.ended and live.absence is None:
            live.absence = asyncio.create_task(self._abort_if_absent(live, grace=grace))

    async def _abort_if_absent(self, live: LiveAnswer, *, grace: float) -> None:
        await asyncio.sleep(grace)
        with contextlib.suppress(ServiceError):
            while seconds := await self._answers.wanted_for(live.tenant, live.id):  # noqa: ASYNC110  at another replica
                await asyncio.sleep(seconds)
        live.absence = None
        _log.info("answer_abandoned", **live.ids)
        self._abort(live)

    async def _beat(self) -> None:
        """Keep the leases of our answers; what a reader elsewhere asked of one that gains nothing now is heard here."""
        while True:
            await asyncio.sleep(self._settings.lease_seconds / 3)
            for live in [live for live in self._live.values() if not live.ended]:
                with contextlib.suppress(ServiceError):
                    hold = await self._answers.renew(
                        live.tenant, live.id, live.owner, lease_seconds=self._settings.lease_seconds
                    )
                    if not live.ended:  # meanwhile it may have, and its lease was given back with the last write
                        await self._learn(live, hold)


def _asked(live: LiveAnswer) -> tracing.Attributes:
    """What a question's span tells of it, by the conventions for generative models."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "reeltalk",
        "gen_ai.request.model": live.session.model,
        "gen_ai.conversation.id": live.session.id,
        "gen_ai.response.id": live.id,
        **tracing.sampling(live.params),
    }


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
