"""A prompt goes to a worker that has computed a prefix of it, unless its load is too high; the table is bounded."""

import pytest

from model.text.conversation import Clip, Conversation, Turn
from service.workers.routing import MAX_EXTRA_LOAD, PrefixTable, prompt_prefixes

VIDEO = ("features:one",)


def conversation(*texts: str, system: str = "") -> Conversation:
    """A conversation with these turns, by user and model alternately."""
    turns = tuple(Turn(role="assistant" if n % 2 else "user", text=text) for n, text in enumerate(texts))
    return Conversation(clips=(Clip(frame_indices=(0, 8), fps=8.0),), turns=turns, system=system)


def prefixes(prompt: Conversation, feature_keys: tuple[str, ...], *, salt: str = "acme") -> tuple[bytes, ...]:
    return prompt_prefixes(prompt, feature_keys, salt=salt)


FIRST = prefixes(conversation("What is it?"), VIDEO)
SECOND = prefixes(conversation("What is it?", "A circle.", "What colour?"), VIDEO)


def test_a_next_question_shares_all_prefixes_and_another_session_that_of_the_video() -> None:
    assert SECOND[: len(FIRST)] == FIRST
    other = prefixes(conversation("How many?"), VIDEO)
    assert (other[0] == FIRST[0], other[1] == FIRST[1]) == (True, False)


@pytest.mark.parametrize(
    "other",
    [
        prefixes(conversation("What is it?"), ("features:two",)),
        prefixes(conversation("What is it?", system="Be brief."), VIDEO),
        prefixes(Conversation(clips=(), turns=conversation("What is it?").turns), VIDEO),
        prefixes(conversation("What is it?"), VIDEO, salt="rival"),
    ],
)
def test_another_tenant_video_system_text_or_choice_of_frames_shares_no_prefix(other: tuple[bytes, ...]) -> None:
    assert not set(other) & set(FIRST)


def test_a_session_stays_with_the_worker_of_its_last_answer() -> None:
    table: PrefixTable[str] = PrefixTable()
    table.add(FIRST, "a")
    table.add(prefixes(conversation("How many?"), VIDEO), "b")
    assert table.choose(SECOND, {"a": MAX_EXTRA_LOAD, "b": 0.0, "c": 0.0}) == "a", "the whole first turn"
    assert table.choose(prefixes(conversation("Why?"), VIDEO), {"a": 2.0, "b": 1.0, "c": 0.0}) == "b", "the video alone"


def test_a_worker_whose_load_is_too_high_loses_to_one_with_a_shorter_prefix_or_none() -> None:
    table: PrefixTable[str] = PrefixTable()
    table.add(FIRST, "a")
    table.add(FIRST[:1], "b")
    assert table.choose(SECOND, {"a": MAX_EXTRA_LOAD + 0.1, "b": 1.0, "c": 0.0}) == "b"
    assert table.choose(SECOND, {"a": MAX_EXTRA_LOAD + 0.1, "b": MAX_EXTRA_LOAD + 0.1, "c": 0.0}) == "c"


def test_only_a_worker_with_a_known_load_is_chosen() -> None:
    table: PrefixTable[str] = PrefixTable()
    table.add(FIRST, "a")
    assert table.choose(SECOND, {"b": 9.0}) == "b"


def test_videos_are_spread_over_idle_workers_and_each_always_goes_to_the_same() -> None:
    table: PrefixTable[int] = PrefixTable()
    idle = dict.fromkeys(range(4), 0.0)
    chosen = [table.choose(prefixes(conversation("?"), (f"features:{n}",)), idle) for n in range(64)]
    assert set(chosen) == set(idle)
    assert chosen == [table.choose(prefixes(conversation("?"), (f"features:{n}",)), idle) for n in range(64)]


def test_a_removed_worker_leaves_all_entries() -> None:
    table: PrefixTable[str] = PrefixTable()
    table.add(FIRST, "a")
    table.add(FIRST[:1], "b")
    table.remove("a")
    assert len(table) == 1
    assert table.choose(SECOND, {"a": 0.0, "b": 1.0}) == "b"


def test_the_table_is_bounded_and_evicts_the_least_recently_used() -> None:
    table: PrefixTable[str] = PrefixTable(max_prefixes=2)
    table.add((b"one",), "a")
    table.add((b"two",), "a")
    table.add((b"one",), "a")
    table.add((b"three",), "a")
    assert len(table) == 2
    loads = {"a": 1.0, "b": 0.0}
    assert [table.choose((name,), loads) for name in (b"one", b"two", b"three")] == ["a", "b", "a"]
