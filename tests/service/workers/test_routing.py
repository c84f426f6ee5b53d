"""Answers go where their beginning is known, until that costs more than it spares; nothing is remembered for ever."""

import pytest

from model.text.conversation import Clip, Conversation, Turn
from service.workers import routing
from service.workers.routing import SLACK, PrefixTable

VIDEO = ("features:one",)


def asked(*texts: str, system: str = "") -> Conversation:
    """A conversation of turns of user and model, a question last."""
    turns = tuple(Turn(role="assistant" if n % 2 else "user", text=text) for n, text in enumerate(texts))
    return Conversation(clips=(Clip(frame_indices=(0, 8), fps=8.0),), turns=turns, system=system)


def prefixes(conversation: Conversation, feature_keys: tuple[str, ...], *, salt: str = "acme") -> tuple[bytes, ...]:
    return routing.prefixes(conversation, feature_keys, salt=salt)


FIRST = prefixes(asked("What is it?"), VIDEO)
SECOND = prefixes(asked("What is it?", "A circle.", "What colour?"), VIDEO)


def test_a_next_question_begins_with_what_the_first_one_named_and_another_session_with_its_video() -> None:
    assert SECOND[: len(FIRST)] == FIRST
    other = prefixes(asked("How many?"), VIDEO)
    assert (other[0] == FIRST[0], other[1] == FIRST[1]) == (True, False)


@pytest.mark.parametrize(
    "other",
    [
        prefixes(asked("What is it?"), ("features:two",)),
        prefixes(asked("What is it?", system="Be brief."), VIDEO),
        prefixes(Conversation(clips=(), turns=asked("What is it?").turns), VIDEO),
        prefixes(asked("What is it?"), VIDEO, salt="rival"),
    ],
)
def test_another_tenant_video_system_text_or_choice_of_frames_begins_otherwise(other: tuple[bytes, ...]) -> None:
    assert not set(other) & set(FIRST)


def test_who_has_answered_in_a_session_goes_on_with_it() -> None:
    table: PrefixTable[str] = PrefixTable()
    table.remember(FIRST, "a")
    table.remember(prefixes(asked("How many?"), VIDEO), "b")
    assert table.choose(SECOND, {"a": SLACK, "b": 0.0, "c": 0.0}) == "a", "the whole first turn"
    assert table.choose(prefixes(asked("Why?"), VIDEO), {"a": 2.0, "b": 1.0, "c": 0.0}) == "b", "the video alone"


def test_a_worker_with_too_much_to_do_is_passed_over_for_one_that_knows_less_or_nothing() -> None:
    table: PrefixTable[str] = PrefixTable()
    table.remember(FIRST, "a")
    table.remember(FIRST[:1], "b")
    assert table.choose(SECOND, {"a": SLACK + 0.1, "b": 1.0, "c": 0.0}) == "b"
    assert table.choose(SECOND, {"a": SLACK + 0.1, "b": SLACK + 0.1, "c": 0.0}) == "c"


def test_only_who_can_take_it_is_chosen() -> None:
    table: PrefixTable[str] = PrefixTable()
    table.remember(FIRST, "a")
    assert table.choose(SECOND, {"b": 9.0}) == "b"


def test_of_the_idle_each_gets_some_videos_and_a_video_always_the_same() -> None:
    table: PrefixTable[int] = PrefixTable()
    idle = dict.fromkeys(range(4), 0.0)
    chosen = [table.choose(prefixes(asked("?"), (f"features:{n}",)), idle) for n in range(64)]
    assert set(chosen) == set(idle)
    assert chosen == [table.choose(prefixes(asked("?"), (f"features:{n}",)), idle) for n in range(64)]


def test_a_worker_that_is_gone_is_forgotten_with_all_it_had() -> None:
    table: PrefixTable[str] = PrefixTable()
    table.remember(FIRST, "a")
    table.remember(FIRST[:1], "b")
    table.forget("a")
    assert len(table) == 1
    assert table.choose(SECOND, {"a": 0.0, "b": 1.0}) == "b"


def test_the_table_is_bounded_and_forgets_what_was_not_used_longest() -> None:
    table: PrefixTable[str] = PrefixTable(max_prefixes=2)
    table.remember((b"one",), "a")
    table.remember((b"two",), "a")
    table.remember((b"one",), "a")
    table.remember((b"three",), "a")
    assert len(table) == 2
    loads = {"a": 1.0, "b": 0.0}
    assert [table.choose((name,), loads) for name in (b"one", b"two", b"three")] == ["a", "b", "a"]
