"""Every question about a scene has its one right answer."""

import re
from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from tests.training.some_scenes import LATE, SCENE, THING
from training.corpus import scene_of
from training.dialogues import KINDS, UNKNOWN, Exchange, Kind, ask, draw_dialogue


def thing_in(answer: str) -> str:
    """The one thing of `SCENE` that an answer is about."""
    (found,) = {
        name
        for name, words in {"circle": r"\b(circle|red)\b", "star": r"\b(star|blue)\b"}.items()
        if re.search(words, answer)
    }
    return found


def answers(kind: Kind, *, words: tuple[str, ...] = (), scene=SCENE) -> set[str]:  # type: ignore[no-untyped-def]
    """Every answer to questions of one kind in which all of `words` occur."""
    found = set()
    for number in range(300):
        exchanges = ask(Random(number), scene, kind)
        if exchanges and all(word in exchanges[-1].question.lower() for word in words):
            found.add(exchanges[-1].answer)
    return found


@pytest.mark.parametrize(
    ("kind", "words", "expected"),
    [
        ("colour", ("circle",), {"The circle is red."}),
        ("colour", ("small",), {"The star is blue."}),
        ("shape", ("red",), {"The red object is a circle."}),
        ("size", ("blue",), {"The blue star is small."}),
        ("direction", ("large",), {"The red circle moves left."}),
        ("direction", ("star",), {"The blue star stays still."}),
        ("count", ("objects",), {"There are two objects."}),
        ("count", ("squares",), {"There are no squares."}),
        ("count", ("stars",), {"There is one star."}),
        ("which_moves", ("left",), {"The red circle moves left."}),
        ("which_moves", ("right",), {"No object moves right."}),
        ("which_moves", ("still",), {"The blue star stays still."}),
        ("first", (), {"First, the blue star appears."}),
        ("appears", ("circle",), {"The red circle is there from the start."}),
        ("vanishes", ("star",), {"The blue star stays until the end."}),
        ("absent", ("green",), {f"There is no {thing}." for thing in ("green object", "green circle", "green star")}),
        ("off_topic", (), {UNKNOWN}),
    ],
)
def test_answers_match_the_scene(kind: Kind, words: tuple[str, ...], expected: set[str]) -> None:
    found = answers(kind, words=words)
    assert found
    assert found <= expected | {
        f"There is no {size} {rest}" for size in ("small", "large") for rest in _rests(expected)
    }


def _rests(expected: set[str]) -> set[str]:
    return {answer.removeprefix("There is no ") for answer in expected if answer.startswith("There is no ")}


def test_a_time_is_that_of_the_first_sampled_frame_after_the_event_and_right_within_an_interval() -> None:
    # Frames 4, 14 ... of 80 at 20 per second; the star appears at 2.0 s, between 1.7 and 2.2.
    (answer,) = answers("appears", words=("star",))
    assert answer == "The blue star appears at 2.2 seconds."
    exchange = next(
        exchanges[-1]
        for number in range(99)
        if (exchanges := ask(Random(number), SCENE, "appears")) and exchanges[-1].moments
    )
    assert (exchange.moments, exchange.interval) == ((2.0,), 0.5)
    assert exchange.is_right("The blue star appears at 1.7 seconds.")
    assert not exchange.is_right("The blue star appears at 2.7 seconds.")
    assert not exchange.is_right("The blue star vanishes at 2.2 seconds.")
    assert not exchange.is_right("The blue star appears.")


def test_a_description_names_everything_in_the_order_of_colours() -> None:
    (answer,) = answers("describe")
    assert answer == (
        "There are two objects: a large red circle that moves left, "
        "and a small blue star that stays still and appears at 2.2 seconds."
    )


def test_a_question_that_fits_two_things_is_ambiguous() -> None:
    twins = replace(SCENE, things=(THING, replace(LATE, shape="circle", size="large")))
    found = answers("ambiguous", scene=twins)
    assert found == {f"There is more than one {name}." for name in ("circle", "large circle", "large object")}
    assert answers("colour", words=("circle",), scene=twins) <= {"The circle is red.", "The circle is blue."}


def test_it_refers_to_the_thing_of_the_last_answer() -> None:
    for number in range(200):
        exchanges = ask(Random(number), SCENE, "follow_up")
        assert exchanges
        before, after = exchanges
        if " it" in after.question.lower() or " its" in after.question.lower():
            assert thing_in(before.answer) == thing_in(after.answer)


def test_questions_come_in_many_wordings_and_all_kinds() -> None:
    asked: Counter[str] = Counter()
    wordings = set()
    for number in range(150):
        for exchange in draw_dialogue(Random(number), scene_of(1, number), 8):
            asked[exchange.kind] += 1
            wordings.add(exchange.question)
            assert exchange.is_right(exchange.answer)
    assert set(asked) == set(KINDS)
    assert len(wordings) > 900
    assert any(wording.isupper() for wording in wordings)
    assert any(wording.islower() for wording in wordings)


def test_every_question_about_an_unknown_clip_has_the_same_answer() -> None:
    exchanges = draw_dialogue(Random(1), None, 20)
    assert {exchange.answer for exchange in exchanges} == {UNKNOWN}
    assert not Exchange(kind="other_clip", question="?", answer=UNKNOWN).is_right("The circle is red.")
