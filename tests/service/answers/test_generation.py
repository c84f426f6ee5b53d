"""An answer in the making: every event once and in order, one end, and a history that tells what was said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.features import PackedFeatures
from service.answers.generation import LiveAnswer
from service.errors import InternalError
from service.observability.metrics import Metrics
from service.store.answers import AnswerWrite
from service.store.event_log import LogEvent
from tests.service.answers.conversations import live_answer

FEATURES = PackedFeatures(blob=b"", frame_indices=(3, 9), timestamps=(0.25, 0.75))


def say(live: LiveAnswer, *words: str) -> None:
    for word in words:
        live.add_delta(word, token_ids=(1,), metrics=Metrics())


def taken(live: LiveAnswer) -> AnswerWrite:
    write = live.take_unwritten()
    assert write is not None
    return write


def test_its_life_is_opening_progress_deltas_and_done_numbered_without_a_gap() -> None:
    live = live_answer()
    events = [live.opening()]
    live.add_progress(live.videos[0].id, "decode", 1 / 3)
    live.set_frames([FEATURES])
    say(live, "A red", " square.")
    events += taken(live).events
    live.finish("stop", num_prompt_tokens=100)
    events += taken(live).events
    assert [(e.number, e.name) for e in events] == list(
        enumerate(["answer", "progress", "delta", "delta", "done"], start=1)
    )
    assert events[0].data == {"id": live.id, "session_id": live.session.id}
    assert events[1].data == {"video_id": live.videos[0].id, "stage": "decode", "fraction": 0.3333}


@given(words=st.lists(st.text(max_size=3), max_size=20), looks=st.sets(st.integers(0, 20)))
def test_however_it_is_written_out_nothing_is_lost_or_doubled(words: list[str], looks: set[int]) -> None:
    live = live_answer()
    events: list[LogEvent] = []
    live.opening()
    for place, word in enumerate(words):
        say(live, word)
        if place in looks and (write := live.take_unwritten()) is not None:
            events += write.events
    live.finish("stop", num_prompt_tokens=1)
    last = taken(live)
    events += last.events
    assert [e.number for e in events] == list(range(2, len(events) + 2))
    assert "".join(e.data["text"] for e in events if e.name == "delta") == "".join(words)
    assert last.ending is not None
    assert last.ending.turn[1].content == "".join(words)
    assert live.take_unwritten() is None


def test_tokens_whose_text_is_held_back_make_no_event_and_are_counted() -> None:
    live = live_answer()
    live.opening()
    say(live, "", "", "é")
    live.finish("length", num_prompt_tokens=7, num_cached_tokens=4)
    write = taken(live)
    assert [e.name for e in write.events] == ["delta", "done"]
    assert write.events[-1].data["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_done_tells_what_the_history_keeps() -> None:
    live = live_answer()
    live.set_frames([FEATURES])
    say(live, "Yes.")
    live.finish("stop", num_prompt_tokens=3)
    write = taken(live)
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
            "video_id": live.videos[0].id,
            "frames": [{"index": 3, "timestamp": 0.25}, {"index": 9, "timestamp": 0.75}],
        }
    ]


@pytest.mark.parametrize(("words", "num_messages"), [((), 0), (("Half a",), 2)])
def test_stopped_it_enters_the_history_only_if_it_was_heard(words: tuple[str, ...], num_messages: int) -> None:
    live = live_answer()
    say(live, *words)
    live.finish("abort", num_prompt_tokens=0)
    ending = taken(live).ending
    assert ending is not None
    assert ending.record.status == "cancelled"
    assert len(ending.turn) == num_messages


def test_an_error_is_its_last_event_and_leaves_the_history_as_it_was() -> None:
    live = live_answer()
    say(live, "Half a")
    error = InternalError("worker_lost", "…")
    live.fail(error)
    write = taken(live)
    assert [e.name for e in write.events] == ["delta", "error"]
    assert write.events[-1].data == error.envelope()
    assert write.ending is not None
    assert (write.ending.record.status, write.ending.turn) == ("failed", ())


def test_after_its_end_progress_of_a_video_changes_nothing() -> None:
    live = live_answer()
    live.finish("abort", num_prompt_tokens=0)
    taken(live)
    live.add_progress(live.videos[0].id, "decode", 0.5)
    assert live.take_unwritten() is None


def test_it_is_settled_when_it_has_ended_and_all_of_it_was_taken() -> None:
    live = live_answer()
    assert not live.is_settled
    live.set_frames([FEATURES])
    assert live.is_generating
    live.finish("stop", num_prompt_tokens=0)
    assert (live.ended, live.is_generating, live.is_settled) == (True, False, False)
    taken(live)
    assert live.is_settled


def test_a_successor_goes_on_where_the_log_ends() -> None:
    first = live_answer()
    first.opening()
    first.add_delta("", token_ids=(1,), metrics=Metrics())
    first.add_delta("A r", token_ids=(2,), metrics=Metrics())
    first.add_delta("ed", token_ids=(3,), metrics=Metrics())
    first.add_delta("", token_ids=(4,), metrics=Metrics())  # its text is held back: whoever goes on makes it again
    log = taken(first).events
    assert [event.token_ids for event in log] == [(1, 2), (3,)]

    second = live_answer()
    second.take_up(log)
    assert second.taken_token_ids == (1, 2, 3)
    second.add_progress(second.videos[0].id, "ready", 1.0)
    second.set_frames([FEATURES])
    second.add_delta(" sq", token_ids=(4, 5), metrics=Metrics())
    second.finish("stop", num_prompt_tokens=9)
    write = taken(second)
    assert [(e.number, e.name) for e in write.events] == [(4, "delta"), (5, "done")]
    assert write.ending is not None
    assert write.ending.turn[1].content == "A red sq"
    assert write.ending.turn[1].usage is not None
    assert write.ending.turn[1].usage.completion_tokens == 5
    assert write.events[1].data["timings"]["time_to_first_token_ms"] is None, "it was measured by nobody who lives"
