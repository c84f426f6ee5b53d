"""An answer in a session while this replica generates it: its events, its ending, and its generation. No I/O."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from model.text.conversation import Turn
from service.answers.generation import Generation, failure_of
from service.answers.moments import VideoTimeAxis
from service.errors import ServiceError
from service.ids import new_id
from service.observability.model_metrics import ModelMetrics
from service.store.answers import AnswerWrite, Ending
from service.store.event_log import LogEvent
from service.store.records import (
    AnswerRecord,
    AnswerStatus,
    FinishReason,
    MessageRecord,
    Problem,
    SessionRecord,
    VideoFrames,
    VideoRecord,
)
from service.workers.protocol import Delta, Refused


@dataclass(slots=True, eq=False, kw_only=True)
class RunningAnswer:
    """An answer that this replica owns. Methods change state only; the writer stores it with `take_unwritten`."""

    tenant: str
    record: AnswerRecord
    session: SessionRecord
    videos: tuple[VideoRecord, ...]
    turns: tuple[Turn, ...]
    """The history and the question."""
    num_messages: int
    """Messages in the session's history before this turn."""
    generation: Generation
    generator: str | None = None
    """What generates it, as `ModelInfo.identity`; None if that was not recorded."""
    ids: dict[str, str] = field(default_factory=dict)
    """The ids that its log lines carry."""
    preparing: "asyncio.Task[None] | None" = None
    deadline: asyncio.TimerHandle | None = None

    is_handed_over: bool = False
    """Whether another replica is to continue it, so that further output of its job is ignored."""

    resumed_token_ids: tuple[int, ...] = ()
    """The tokens that earlier owners logged."""
    _frames: tuple[VideoFrames, ...] | None = None
    _time_axis: VideoTimeAxis | None = None
    _text: list[str] = field(default_factory=list)
    _num_events: int = 0
    _unwritten: list[LogEvent] = field(default_factory=list)
    _ending: Ending | None = None
    _held_token_ids: tuple[int, ...] = ()
    """Tokens whose text the detokenizer holds back; the next `delta` event carries them."""

    @property
    def id(self) -> str:
        """The answer's id."""
        return self.record.id

    @property
    def owner(self) -> str:
        """The token under which this replica may write the answer, and the name of its job in the pool.

        An answer that returns to a replica has a new one, so that output of the earlier job is not mistaken for it.
        """
        return self.generation.job_id

    @property
    def ended(self) -> bool:
        """Whether it has its last event."""
        return self._ending is not None

    @property
    def is_stored(self) -> bool:
        """Whether it has ended and the store has all of it."""
        return self.ended and not self._unwritten

    @property
    def is_generating(self) -> bool:
        """Whether a worker has the question, so that the ending must come from there."""
        return self._frames is not None and not self.ended

    def resume(self, log: Sequence[LogEvent]) -> None:
        """Continue after `log`, all events that earlier owners wrote."""
        self._num_events = log[-1].number if log else 0
        self._text = [event.data["text"] for event in log if event.name == "delta"]
        self.resumed_token_ids = tuple(token_id for event in log for token_id in event.token_ids)
        self.generation.resume(
            num_tokens=len(self.resumed_token_ids), seconds=max(0.0, time.time() - self.record.created_at)
        )

    def opening(self) -> LogEvent:
        """The first event of the log."""
        return self._event("answer", {"id": self.id, "session_id": self.session.id})

    def add_progress(self, video_id: str, stage: str, fraction: float) -> None:
        """Add the progress of a video's preparation, unless the answer already has tokens."""
        if not self.ended and not self.generation.num_tokens:
            data = {"video_id": video_id, "stage": stage, "fraction": round(fraction, 4)}
            self._unwritten.append(self._event("progress", data))

    def set_frames(self, frames: tuple[VideoFrames, ...], *, time_axis: VideoTimeAxis | None = None) -> None:
        """Set the frames that the answer is based on, and the axis on which it names times.

        From now on a worker has the question.
        """
        self._frames = frames
        self._time_axis = time_axis

    def add_output(self, output: Delta | Refused, metrics: ModelMetrics) -> None:
        """Add what a worker reported: text and tokens, and the ending with its last report."""
        if isinstance(output, Delta):
            self.generation.add(output, metrics)
            self._held_token_ids += output.token_ids
            if output.text:
                self._text.append(output.text)
                self._unwritten.append(self._event("delta", {"text": output.text}, token_ids=self._held_token_ids))
                self._held_token_ids = ()
        failure = failure_of(output)
        if failure is not None:
            self.fail(failure)
        elif isinstance(output, Delta) and output.finish_reason is not None:
            self.finish(output.finish_reason)

    def finish(self, finish_reason: str) -> None:
        """End the answer. Its turn enters the history, unless it was stopped before its first word."""
        self.generation.finish_reason = finish_reason
        message = self._message(finish_reason)
        status: AnswerStatus = "cancelled" if finish_reason == "abort" else "completed"
        record = self.record.model_copy(update={"status": status, "message": message})
        question = MessageRecord(
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
                    "moments": None if message.moments is None else [found.model_dump() for found in message.moments],
                },
            )
        )
        has_turn = bool(message.content) or finish_reason != "abort"
        self._end(Ending(record=record, number=self.num_messages, turn=(question, message) if has_turn else ()))

    def fail(self, error: ServiceError) -> None:
        """End the answer with an error event. The history stays as it was."""
        self.generation.fail(error)
        problem = Problem(code=error.code, message=error.message)
        record = self.record.model_copy(update={"status": "failed", "error": problem})
        self._unwritten.append(self._event("error", error.envelope()))
        self._end(Ending(record=record, number=self.num_messages, turn=()))

    def take_unwritten(self) -> AnswerWrite | None:
        """Return what the store lacks, and forget it; None if nothing."""
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
        """Cancel its task and timer, release its place and end its trace."""
        self.generation.close(otherwise="handed_over")
        for handle in (self.preparing, self.deadline):
            if handle is not None:
                handle.cancel()

    def _end(self, ending: Ending) -> None:
        self._ending = ending
        self.generation.place.start()

    def _event(self, name: str, data: Mapping[str, object], *, token_ids: tuple[int, ...] = ()) -> LogEvent:
        self._num_events += 1
        return LogEvent(self._num_events, name, data, token_ids)

    def _message(self, finish_reason: str) -> MessageRecord:
        reason: FinishReason = "abort"
        if finish_reason in {"stop", "length"}:
            reason = "stop" if finish_reason == "stop" else "length"
        content = "".join(self._text)
        return MessageRecord(
            id=new_id("msg"),
            role="assistant",
            content=content,
            created_at=time.time(),
            answer_id=self.id,
            finish_reason=reason,
            usage=self.generation.usage(),
            timings=self.generation.timings(),
            frames=self._frames,
            moments=None if self._time_axis is None else self._time_axis.moments_in(content),
        )
