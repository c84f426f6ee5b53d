"""One answer while this replica gives it: what it has said, what is not yet in the store, how it ends. No I/O."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from model.engine.sampling_params import SamplingParams
from model.features import PackedFeatures
from model.text.conversation import Turn
from service.answers.admission import Place
from service.errors import ServiceError
from service.ids import new_id
from service.observability.metrics import Metrics
from service.observability.tracing import Trace
from service.store.answers import AnswerWrite, Ending
from service.store.event_log import LogEvent
from service.store.records import (
    AnswerRecord,
    AnswerStatus,
    CachedTokens,
    FinishReason,
    MessageRecord,
    Problem,
    SampledFrame,
    SessionRecord,
    Timings,
    Usage,
    VideoFrames,
    VideoRecord,
)


@dataclass(slots=True, eq=False, kw_only=True)
class LiveAnswer:
    """An answer in the making. Methods change state only; the owner writes it out with `take_unwritten`."""

    tenant: str
    record: AnswerRecord
    session: SessionRecord
    videos: tuple[VideoRecord, ...]
    turns: tuple[Turn, ...]
    params: SamplingParams
    num_messages: int
    """Messages in the session's history before this turn."""
    owner: str = field(default_factory=lambda: new_id("own"))
    """The token under which this replica may write the answer; also the name of its job, so that an answer that comes
    back to a replica is not taken for what a worker still does of it."""

    ids: dict[str, str] = field(default_factory=dict)
    """What its log lines carry."""
    trace: Trace = field(default_factory=Trace)
    place: Place = field(default_factory=Place)
    """What it takes of the queue while it waits."""
    work: "asyncio.Task[None] | None" = None
    absence: "asyncio.Task[None] | None" = None
    deadline: asyncio.TimerHandle | None = None

    _frames: tuple[VideoFrames, ...] | None = None
    _text: list[str] = field(default_factory=list)
    _num_events: int = 0
    _unwritten: list[LogEvent] = field(default_factory=list)
    _ending: Ending | None = None
    _finish_reason: str | None = None
    _num_tokens: int = 0
    _taken_token_ids: tuple[int, ...] = ()
    _held_token_ids: tuple[int, ...] = ()
    _num_prompt_tokens: int = 0
    _num_cached_tokens: int = 0
    _started_at: float = field(default_factory=time.monotonic)
    _queue_seconds: float | None = None
    _prefill_seconds: float | None = None
    _error_code: str | None = None
    _first_token_at: float | None = None
    _last_token_at: float | None = None

    @property
    def id(self) -> str:
        """The answer's id."""
        return self.record.id

    @property
    def ended(self) -> bool:
        """Whether nothing can be added any more."""
        return self._ending is not None

    @property
    def is_waiting(self) -> bool:
        """Whether it has not begun to answer."""
        return self._first_token_at is None and not self.ended

    @property
    def is_settled(self) -> bool:
        """Whether it has ended and all of it is in the store."""
        return self.ended and not self._unwritten

    @property
    def is_generating(self) -> bool:
        """Whether a worker has the question, so that the end must come from there."""
        return self._frames is not None and not self.ended

    @property
    def taken_token_ids(self) -> tuple[int, ...]:
        """The tokens that earlier owners put into the log."""
        return self._taken_token_ids

    def take_up(self, log: Sequence[LogEvent]) -> None:
        """Go on behind what an earlier owner has written: all events there are."""
        self._num_events = log[-1].number if log else 0
        self._text = [event.data["text"] for event in log if event.name == "delta"]
        self._taken_token_ids = tuple(token_id for event in log for token_id in event.token_ids)
        self._num_tokens = len(self._taken_token_ids)
        self._started_at -= max(0.0, time.time() - self.record.created_at)

    def opening(self) -> LogEvent:
        """The first event of the log."""
        return self._event("answer", {"id": self.id, "session_id": self.session.id})

    def add_progress(self, video_id: str, stage: str, fraction: float) -> None:
        """A video is being prepared for this answer; who has read words of it already need not know."""
        if not self.ended and not self._num_tokens:
            data = {"video_id": video_id, "stage": stage, "fraction": round(fraction, 4)}
            self._unwritten.append(self._event("progress", data))

    def set_frames(self, features: list[PackedFeatures]) -> None:
        """The frames the answer is given on; from now on a worker has the question."""
        self._frames = tuple(
            VideoFrames(
                video_id=video.id,
                frames=tuple(
                    SampledFrame(index=index, timestamp=timestamp)
                    for index, timestamp in zip(packed.frame_indices, packed.timestamps, strict=True)
                ),
            )
            for video, packed in zip(self.videos, features, strict=True)
        )

    def add_delta(self, text: str, *, token_ids: tuple[int, ...], metrics: Metrics) -> None:
        """Tokens were generated; their text may still be held back, and they with it."""
        now = time.monotonic()
        if token_ids:
            if self._last_token_at is not None:
                metrics.inter_token_latency.observe((now - self._last_token_at) / len(token_ids))
            else:
                self._first_token_at = now
                if not self._taken_token_ids:
                    metrics.time_to_first_token.observe(now - self._started_at)
            self._last_token_at = now
            self._num_tokens += len(token_ids)
            self._held_token_ids += token_ids
        if text:
            self._text.append(text)
            self._unwritten.append(self._event("delta", {"text": text}, token_ids=self._held_token_ids))
            self._held_token_ids = ()

    def admitted(self, *, queue_seconds: float, prefill_seconds: float) -> None:
        """Its first token came, after waiting so long for a place in the batch, and so long in it."""
        self._queue_seconds, self._prefill_seconds = queue_seconds, prefill_seconds

    def finish(self, finish_reason: str, *, num_prompt_tokens: int, num_cached_tokens: int = 0) -> None:
        """The answer ends; its turn enters the history, unless it was stopped before its first word."""
        self._num_prompt_tokens, self._num_cached_tokens = num_prompt_tokens, num_cached_tokens
        self._finish_reason = finish_reason
        message = self._message(finish_reason)
        status: AnswerStatus = "cancelled" if finish_reason == "abort" else "completed"
        record = self.record.model_copy(update={"status": status, "message": message})
        asked = MessageRecord(
            id=new_id("msg"),
            role="user",
            content=self.record.question,
            created_at=self.record.created_at,
            answer_id=self.id,
        )
        self._unwritten.append(
            self._event(
                "done",
                {
                    "id": self.id,
                    "message_id": message.id,
                    **message.model_dump(include={"finish_reason", "usage", "timings", "frames"}, mode="json"),
                },
            )
        )
        is_heard = bool(message.content) or finish_reason != "abort"
        self._ending = Ending(record=record, number=self.num_messages, turn=(asked, message) if is_heard else ())

    def fail(self, error: ServiceError) -> None:
        """The answer ends without one: the log says why, and the history stays as it was."""
        self._finish_reason, self._error_code = "error", error.code
        problem = Problem(code=error.code, message=error.message)
        record = self.record.model_copy(update={"status": "failed", "error": problem})
        self._unwritten.append(self._event("error", error.envelope()))
        self._ending = Ending(record=record, number=self.num_messages, turn=())

    def take_unwritten(self) -> AnswerWrite | None:
        """What has to go to the store since the last call; None if nothing."""
        if not self._unwritten:
            return None
        events, self._unwritten = tuple(self._unwritten), []
        return AnswerWrite(
            tenant=self.tenant,
            answer_id=self.id,
            session_id=self.session.id,
            owner=self.owner,
            events=events,
            ending=self._ending,
        )

    def close(self) -> None:
        """Let go of timers and tasks."""
        self.trace.end(
            {
                "gen_ai.usage.input_tokens": self._num_prompt_tokens,
                "gen_ai.usage.output_tokens": self._num_tokens,
                "gen_ai.response.finish_reasons": [self._finish_reason or "handed_over"],
                "error.type": self._error_code,
            },
            failed=self._error_code is not None,
        )
        for handle in (self.work, self.absence, self.deadline):
            if handle is not None:
                handle.cancel()

    def observe(self, metrics: Metrics) -> None:
        """Count the ended answer."""
        metrics.show_end(
            finish_reason=self._finish_reason or "error",
            seconds=time.monotonic() - self._started_at,
            decode_seconds=self._decode_seconds,
            num_prompt_tokens=self._num_prompt_tokens,
            num_tokens=self._num_tokens - len(self._taken_token_ids),
        )

    def summary(self) -> dict[str, object]:
        """The ended answer in numbers, for the log; none of its words."""
        timings = self._timings()
        told = {
            "finish_reason": self._finish_reason,
            "error": self._error_code,
            "num_prompt_tokens": self._num_prompt_tokens,
            "num_cached_tokens": self._num_cached_tokens,
            "num_output_tokens": self._num_tokens,
            "queue_ms": None if self._queue_seconds is None else _ms(self._queue_seconds),
            "prefill_ms": None if self._prefill_seconds is None else _ms(self._prefill_seconds),
            "time_to_first_token_ms": timings.time_to_first_token_ms,
            "decode_ms": timings.generation_time_ms,
            "duration_ms": timings.total_time_ms,
        }
        return {name: value for name, value in told.items() if value is not None}

    def _event(self, name: str, data: Mapping[str, object], *, token_ids: tuple[int, ...] = ()) -> LogEvent:
        self._num_events += 1
        return LogEvent(self._num_events, name, data, token_ids)

    def _message(self, finish_reason: str) -> MessageRecord:
        reason: FinishReason = "abort"
        if finish_reason in {"stop", "length"}:
            reason = "stop" if finish_reason == "stop" else "length"
        return MessageRecord(
            id=new_id("msg"),
            role="assistant",
            content="".join(self._text),
            created_at=time.time(),
            answer_id=self.id,
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=self._num_prompt_tokens,
                completion_tokens=self._num_tokens,
                total_tokens=self._num_prompt_tokens + self._num_tokens,
                prompt_tokens_details=CachedTokens(cached_tokens=self._num_cached_tokens),
            ),
            timings=self._timings(),
            frames=self._frames,
        )

    @property
    def _decode_seconds(self) -> float | None:
        """From the first token that this replica has seen to the last."""
        first, last = self._first_token_at, self._last_token_at
        return None if first is None or last is None else last - first

    def _timings(self) -> Timings:
        now = time.monotonic()
        first, generating = self._first_token_at, self._decode_seconds or 0.0
        gaps = self._num_tokens - len(self._taken_token_ids) - 1  # what we have not seen we do not measure
        return Timings(
            time_to_first_token_ms=None if first is None or self._taken_token_ids else _ms(first - self._started_at),
            generation_time_ms=_ms(generating),
            mean_itl_ms=_ms(generating / gaps) if gaps > 0 else None,
            tokens_per_second=round(gaps / generating, 2) if gaps > 0 and generating > 0 else None,
            total_time_ms=_ms(now - self._started_at),
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
