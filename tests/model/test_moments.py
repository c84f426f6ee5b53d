"""The moments of an answer are the stretches that it names, in seconds of the sampled interval."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.moments import TimeAxis, find_moments
from tests.published import golden

AXIS = TimeAxis(num_positions=100, start=0.0, end=200.0)


def stretches(text: str, axis: TimeAxis = AXIS) -> list[tuple[str, float, float]]:
    return [(text[m.text_start : m.text_end], m.start, m.end) for m in find_moments(text, axis)]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("She runs from 17 to 34.", ["from 17 to 34"]),
        ("From 00 to 17, she runs. From 91 to 98, she rests.", ["From 00 to 17", "From 91 to 98"]),
        ("She runs between 17 and 34 on the beach.", ["between 17 and 34"]),
        ("From 17 to 34 she runs.", ["From 17 to 34"]),
        ("17 to 34", ["17 to 34"]),
        ("17 and 34.", ["17 and 34"]),
        ("She runs 17 to 34 while he waits, 40 to 50 and 60 to 99", ["17 to 34", "40 to 50", "60 to 99"]),
        ("During frames 17 to 17", ["frames 17 to 17"]),
        ('[{"event": "She runs", "timestamps": "from 00 to 29"}]', ["from 00 to 29"]),
    ],
)
def test_published_forms_are_found(text: str, named: list[str]) -> None:
    assert [words for words, _, _ in stretches(text)] == named


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10 to 15 people stand there.",
        "There are 10 to 15 people and 20 and 30 dogs.",
        "Men from 20 to 30 years old.",
        "From 10 to 15 seconds it rains.",
        "from 10 to 15%",
        "from 10 to 15 percent",
        "from 34 to 17",
        "from 1 to 9",
        "from 100 to 200",
        "from 117 to 34",
        "from 17 to 340",
        "from 17 to 34.5",
        "from 1.17 to 34",
        "from 10:15 to 10:30",
        "from 0:17 to 34:00",
        "$10 to 20",
        "from ten to fifteen",
        "from ١٧ to ٣٤",
        "upfrom17 to 34",
    ],
)
def test_other_numbers_are_not_moments(text: str) -> None:
    assert stretches(text) == []


def test_the_last_position_counts_as_a_whole() -> None:
    assert stretches("from 17 to 34.") == [("from 17 to 34", 34.0, 70.0)]
    assert stretches("from 17 to 17.") == [("from 17 to 17", 34.0, 36.0)]
    assert stretches("from 00 to 99.") == [("from 00 to 99", 0.0, 200.0)]


def test_moments_lie_in_the_sampled_interval() -> None:
    axis = TimeAxis(num_positions=100, start=60.0, end=70.0)
    [(_, start, end)] = stretches("from 50 to 99", axis)
    assert (start, end) == pytest.approx((65.0, 70.0))


def test_an_axis_of_another_length_has_numbers_of_another_length() -> None:
    assert stretches("from 5 to 7.", TimeAxis(num_positions=8, start=0.0, end=8.0)) == [("from 5 to 7", 5.0, 8.0)]
    assert stretches("from 05 to 07.", TimeAxis(num_positions=8, start=0.0, end=8.0)) == []
    assert stretches("from 5 to 8.", TimeAxis(num_positions=8, start=0.0, end=8.0)) == []
    assert stretches("from 050 to 127.", TimeAxis(num_positions=128, start=0.0, end=1.28)) == [
        ("from 050 to 127", 0.5, 1.28)
    ]


@pytest.mark.parametrize("interval", [(0, 0.0, 1.0), (100, -1.0, 1.0), (100, 2.0, 1.0)])
def test_an_impossible_axis_is_refused(interval: tuple[int, float, float]) -> None:
    num_positions, start, end = interval
    with pytest.raises(ValueError, match=r"num_positions must be|is not valid"):
        TimeAxis(num_positions=num_positions, start=start, end=end)


def test_a_time_that_training_wrote_lies_in_the_moment_that_is_read() -> None:
    cases = json.loads((golden("vtimellm-open") / "timestamps.json").read_text())
    assert len(cases) > 5
    for case in cases:
        axis = TimeAxis(num_positions=100, start=0.0, end=case["duration"])
        [moment] = find_moments(f"It is seen from {case['text']} to {case['text']}.", axis)
        half = case["duration"] / 200  # training rounds a time to the nearest position
        assert moment.start - half <= case["t"] <= moment.end, case


def test_the_text_of_the_reference_model_has_no_moments() -> None:
    dialogue = json.loads((golden("vtimellm-e2e") / "dialogue.json").read_text())
    assert [stretches(turn["text"]) for turn in dialogue["turns"]] == [[], []]


@st.composite
def axes(draw: st.DrawFn) -> TimeAxis:
    start = draw(st.floats(0, 1e4))
    return TimeAxis(num_positions=draw(st.integers(1, 1000)), start=start, end=start + draw(st.floats(0, 1e4)))


@given(axis=axes(), text=st.text(alphabet="from to and between 0123456789.,:%-\"'{}é", max_size=80))
def test_every_moment_lies_in_the_text_and_in_the_interval(axis: TimeAxis, text: str) -> None:
    last = 0
    for moment in find_moments(text, axis):
        assert last <= moment.text_start < moment.text_end <= len(text)
        assert axis.start <= moment.start <= moment.end <= axis.end
        last = moment.text_end


@given(
    axis=axes(),
    places=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), max_size=6),
    form=st.sampled_from(["from {} to {}", "between {} and {}", "{} to {}", "{} and {}"]),
)
def test_each_pair_of_positions_in_order_is_found_at_its_seconds(
    axis: TimeAxis, places: list[tuple[int, int]], form: str
) -> None:
    digits = len(str(axis.num_positions - 1))
    pairs = [(min(pair) % axis.num_positions, max(pair) % axis.num_positions) for pair in places]
    text = "; ".join(form.format(f"{first:0{digits}}", f"{last:0{digits}}") for first, last in pairs)
    expected = [axis.seconds(first, last) for first, last in pairs if first <= last]
    assert [(start, end) for _, start, end in stretches(text, axis)] == expected


@given(duration=st.floats(0.1, 1e4), share=st.floats(0, 1))
def test_a_time_written_as_training_writes_it_is_read_within_half_a_position(duration: float, share: float) -> None:
    time = share * duration
    written = f"{min(round(time / duration * 100), 99):02}"
    [moment] = find_moments(f"from {written} to {written}", TimeAxis(num_positions=100, start=0.0, end=duration))
    assert moment.start - duration / 199 <= time <= moment.end + duration / 1e6
