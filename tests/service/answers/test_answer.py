"""A running answer: every event once and in order, one ending, and a history with what was said."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.moments import TimeAxis
from service.answers.answer import RunningAnswer
from service.answers.moments import VideoTimeAxis
from service.errors import InternalError
from service.observability.metrics import Metrics
from service.store.answers import AnswerWrite
from service.store.event_log import LogEvent
from service.store.records import SampledFrame, VideoFrames
from tests.service.answers.conversations import delta, running_answer, video_record

METRICS = Metrics().of_model("tiny")
VIDEO = video_record()
FRAMES = (
    VideoFrames(
        video_id=VIDEO.id,
        frames=(SampledFrame(index=3, timestamp=0.25), SampledFrame(index=9, timestamp=0.75)),
    ),
)

AXIS = VideoTimeAxis(video_id=VIDEO.id, axis=TimeAxis(num_positions=100, start=0.0, end=20.0))


def say(answer: RunningAnswer, *words: str) -> None:
    for word in words:
        answer.add_output(delta(word, 1), METRICS)


def taken(answer: RunningAnswer) -> AnswerWrite:
    write = answer.take_unwritten()
    assert write is not None
    return write


def test_its_life_is_opening_progress_deltas_and_done_numbered_without_a_gap() -> None:
    answer = running_answer(videos=(VIDEO,))
    events = [answer.opening()]
    answer.add_progress(answer.videos[0].id, "decode", 1 / 3)
    answer.set_frames(FRAMES)
    say(answer, "A red", " square.")
    events += taken(answer).events
    answer.finish("stop")
    events += taken(answer).events
    assert [(e.number, e.name) for e in events] == list(
        enumerate(["answer", "progress", "delta", "delta", "done"], start=1)
    )
    assert events[0].data == {"id": answer.id, "session_id": answer.session.id}
    assert events[1].data == {"video_id": answer.videos[0].id, "stage": "decode", "fraction": 0.3333}


@settings(deadline=None)
@given(words=st.lists(st.text(max_size=3), max_size=20), looks=st.sets(st.integers(0, 20)))
def test_however_it_is_written_out_nothing_is_lost_or_doubled(words: list[str], looks: set[int]) -> None:
    answer = running_answer(videos=(VIDEO,))
    events: list[LogEvent] = []
    answer.opening()
    for place, word in enumerate(words):
        say(answer, word)
        if place in looks and (write := answer.take_unwritten()) is not None:
            events += write.events
    answer.finish("stop")
    last = taken(answer)
    events += last.events
    assert [e.number for e in events] == list(range(2, len(events) + 2))
    assert "".join(e.data["text"] for e in events if e.name == "delta") == "".join(words)
    assert last.ending is not None
    assert last.ending.turn[1].content == "".join(words)
    assert answer.take_unwritten() is None


def test_tokens_whose_text_is_held_back_make_no_event_and_are_counted() -> None:
    answer = running_answer(videos=(VIDEO,))
    answer.opening()
    say(answer, "", "", "é")
    answer.finish("length")
    write = taken(answer)
    assert [e.name for e in write.events] == ["delta", "done"]
    assert write.events[-1].data["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_done_tells_what_the_history_keeps() -> None:
    answer = running_answer(videos=(VIDEO,))
    answer.set_frames(FRAMES)
    say(answer, "Yes.")
    answer.finish("stop")
    write = taken(answer)
    assert write.ending is not None
    asked, said = write.ending.turn
    assert (asked.role, asked.content, said.role, said.content) == ("user", "What is it?", "assistant", "Yes.")
    assert write.ending.record.status == "completed"
    assert write.ending.record.message == said
    done = write.events[-1].data
    assert done["message_id"] == said.id
    assert done["finish_reason"] == "stop"
    assert done["frames"] == [
        {
            "video_id": answer.videos[0].id,
            "frames": [{"index": 3, "timestamp": 0.25}, {"index": 9, "timestamp": 0.75}],
        }
    ]


@pytest.mark.parametrize(("words", "num_messages"), [((), 0), (("Half a",), 2)])
def test_stopped_it_enters_the_history_only_if_it_was_heard(words: tuple[str, ...], num_messages: int) -> None:
    answer = running_answer(videos=(VIDEO,))
    say(answer, *words)
    answer.finish("abort")
    ending = taken(answer).ending
    assert ending is not None
    assert ending.record.status == "cancelled"
    assert len(ending.turn) == num_messages


def test_an_error_is_its_last_event_and_leaves_the_history_as_it_was() -> None:
    answer = running_answer(videos=(VIDEO,))
    say(answer, "Half a")
    error = InternalError("worker_lost", "…")
    answer.fail(error)
    write = taken(answer)
    assert [e.name for e in write.events] == ["delta", "error"]
    assert write.events[-1].data == error.envelope()
    assert write.ending is not None
    assert (write.ending.record.status, write.ending.turn) == ("failed", ())


def test_after_its_end_progress_of_a_video_changes_nothing() -> None:
    answer = running_answer(videos=(VIDEO,))
    answer.finish("abort")
    taken(answer)
    answer.add_progress(answer.videos[0].id, "decode", 0.5)
    assert answer.take_unwritten() is None


def test_it_is_stored_when_it_has_ended_and_all_of_it_was_taken() -> None:
    answer = running_answer(videos=(VIDEO,))
    assert not answer.is_stored
    answer.set_frames(FRAMES)
    assert answer.is_generating
    answer.finish("stop")
    assert (answer.ended, answer.is_generating, answer.is_stored) == (True, False, False)
    taken(answer)
    assert answer.is_stored


def test_a_successor_goes_on_where_the_log_ends() -> None:
    first = running_answer(videos=(VIDEO,))
    first.opening()
    first.add_output(delta("", 1), METRICS)
    first.add_output(delta("A r", 2), METRICS)
    first.add_output(delta("ed", 3), METRICS)
    first.add_output(delta("", 4), METRICS)  # its text is held back, so the next owner generates it again
    log = taken(first).events
    assert [event.token_ids for event in log] == [(1, 2), (3,)]

    second = running_answer(videos=(VIDEO,))
    second.resume(log)
    assert second.resumed_token_ids == (1, 2, 3)
    second.add_progress(second.videos[0].id, "ready", 1.0)
    second.set_frames(FRAMES)
    second.add_output(delta(" sq", 4, 5), METRICS)
    second.finish("stop")
    write = taken(second)
    assert [(e.number, e.name) for e in write.events] == [(4, "delta"), (5, "done")]
    assert write.ending is not None
    assert write.ending.turn[1].content == "A red sq"
    assert write.ending.turn[1].usage is not None
    assert write.ending.turn[1].usage.completion_tokens == 5
    assert write.events[1].data["timings"]["time_to_first_token_ms"] is None, "its owner is gone"


def test_done_and_the_history_have_the_moments_that_the_answer_names() -> None:
    answer = running_answer(videos=(VIDEO,))
    answer.set_frames(FRAMES, time_axis=AXIS)
    say(answer, "It is red from 1", "0 to 14.")
    answer.finish("stop")
    write = taken(answer)
    moment = {"video_id": VIDEO.id, "start": 2.0, "end": 3.0, "text_start": 10, "text_end": 23}
    assert write.events[-1].data["moments"] == [moment]
    assert write.ending is not None
    message = write.ending.turn[1]
    assert message.moments is not None
    assert [found.model_dump() for found in message.moments] == [moment]
    assert message.content[10:23] == "from 10 to 14"


@pytest.mark.parametrize(("axis", "moments"), [(AXIS, []), (None, None)])
def test_moments_are_null_only_without_a_time_axis(axis: VideoTimeAxis | None, moments: list[object] | None) -> None:
    answer = running_answer(videos=(VIDEO,))
    answer.set_frames(FRAMES, time_axis=axis)
    say(answer, "It is red.")
    answer.finish("stop")
    assert taken(answer).events[-1].data["moments"] == moments


def test_a_successor_finds_the_moments_of_the_whole_text() -> None:
    first = running_answer(videos=(VIDEO,))
    first.set_frames(FRAMES, time_axis=AXIS)
    say(first, "It is red from 1")
    second = running_answer(videos=(VIDEO,))
    second.resume(taken(first).events)
    second.set_frames(FRAMES, time_axis=AXIS)
    say(second, "0 to 14, blue from 50 to 59.")
    second.finish("stop")
    found = taken(second).events[-1].data["moments"]
    assert [(moment["start"], moment["end"]) for moment in found] == [(2.0, 3.0), (10.0, 12.0)]
