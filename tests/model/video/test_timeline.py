"""Frame selection by numbers: the published rules, intervals, and invalid specs."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.video import timeline
from model.video.spec import (
    FRAME_RULES,
    MAX_FRAME_COUNT,
    WINDOW_SECONDS,
    FrameSpec,
    InvalidFrameSpec,
    VideoError,
    window_indices,
)
from tests.published import golden

TENTHS = timeline.from_rate(0, 1, keys=[True] * 50, time_base=Fraction(1, 10), whole=True)


def test_the_rule_gives_the_published_indices() -> None:
    cases = json.loads((golden("videochat-preproc") / "sampler.json").read_text())
    assert len(cases) > 100
    for case in cases:
        chosen = FRAME_RULES["videochat"](case["num_frames"], case["num_segments"])
        assert chosen == case["indices"], case


def test_the_rule_of_video_chatgpt_gives_the_published_indices() -> None:
    cases = json.loads((golden("video-chatgpt-open") / "frame_indices.json").read_text())
    assert len(cases) > 5
    for num_frames, indices in cases.items():
        assert FRAME_RULES["video-chatgpt"](int(num_frames), 100) == indices, num_frames


@pytest.mark.parametrize("rule", FRAME_RULES)
def test_no_rule_leaves_the_video_or_goes_back_or_takes_more_frames_than_it_may(rule: str) -> None:
    for num_frames in (1, 2, 7, 100, 12_345):
        for count in (1, 8, 64, MAX_FRAME_COUNT):
            chosen = FRAME_RULES[rule](num_frames, count)
            assert min(num_frames, count) <= len(chosen) <= count
            assert chosen == sorted(chosen)
            assert 0 <= chosen[0] <= chosen[-1] < num_frames


def test_for_a_short_video_one_rule_repeats_frames_and_the_other_returns_fewer() -> None:
    assert FRAME_RULES["videochat"](3, 8) == [0, 0, 0, 1, 1, 1, 2, 2]
    assert FRAME_RULES["video-chatgpt"](3, 8) == [0, 1, 1]
    assert FRAME_RULES["left-edges"](3, 8) == [0, 0, 0, 1, 1, 1, 2, 2]
    assert FRAME_RULES["distinct-left-edges"](3, 8) == [0, 1, 2]


def test_an_interval_is_sampled_as_if_it_were_a_video_of_its_own() -> None:
    inside = FRAME_RULES["videochat"](20, 4)
    assert TENTHS.select(FrameSpec(count=4, start=1.0, end=3.0)) == [10 + index for index in inside]
    assert TENTHS.select(FrameSpec(count=4, start=3.0)) == [30 + index for index in inside]
    assert TENTHS.select(FrameSpec(count=4, end=2.0)) == inside


def test_an_interval_starts_with_the_frame_at_its_start_and_ends_before_the_one_at_its_end() -> None:
    assert TENTHS.select(FrameSpec(count=1, start=1.0, end=1.1)) == [10]


def test_timestamps_count_from_the_first_frame() -> None:
    late = timeline.from_rate(7500, 3750, keys=[True] * 8, time_base=Fraction(1, 90_000), whole=True)
    assert late.timestamps()[0] == 0.0
    assert late.select(FrameSpec(count=1, start=0.1)) == [5]


@pytest.mark.parametrize("spec", [FrameSpec(start=5.0), FrameSpec(start=4.91, end=4.99)])
def test_an_interval_without_a_frame_is_an_error(spec: FrameSpec) -> None:
    with pytest.raises(VideoError) as refused:
        TENTHS.select(spec)
    assert refused.value.code == "empty_interval"


def test_packets_are_put_into_the_order_of_presentation() -> None:
    found = timeline.from_packets(
        [0, 300, 100, 200, 400], keys=[True, False, False, False, True], time_base=Fraction(1, 1000)
    )
    assert found is not None
    assert found.pts.tolist() == [0, 100, 200, 300, 400]
    assert [found.key_before(index) for index in range(5)] == [0, 0, 0, 0, 4]
    assert [found.number_of(pts) for pts in (200, 250, 500, None)] == [2, None, None, None]


@pytest.mark.parametrize("pts", [[0, None, 2], [0, 1, 1]])
def test_missing_or_repeated_timestamps_give_no_timeline(pts: list[int | None]) -> None:
    assert timeline.from_packets(pts, keys=[True] * 3, time_base=Fraction(1, 10)) is None


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("count", {"count": 0}),
        ("count", {"count": 101}),
        ("start", {"start": float("nan")}),
        ("start", {"start": -1.0}),
        ("end", {"end": float("inf")}),
        ("end", {"start": 2.0, "end": 2.0}),
        ("rule", {"rule": "every-second-one"}),
    ],
)
def test_a_spec_names_its_field_that_is_out_of_bounds(param: str, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidFrameSpec) as refused:
        FrameSpec(**fields)  # type: ignore[arg-type]
    assert refused.value.param == param


def test_windows_are_chosen_by_the_time_of_frames_and_may_go_back() -> None:
    assert TENTHS.select(FrameSpec(count=10, rule="windows")) == [0, 19, 8, 27, 15, 34, 23, 42, 30, 49]
    assert TENTHS.select(FrameSpec(count=4, rule="windows", start=3.0)) == [30, 49, 30, 49]
    one = timeline.counted(1, Fraction(25))
    assert one.select(FrameSpec(count=6, rule="windows")) == [0] * 6


@given(
    gaps=st.lists(st.integers(1, 400), max_size=60),
    base=st.sampled_from([Fraction(1, 25), Fraction(1, 90), Fraction(1001, 30_000)]),
    num_windows=st.integers(1, 6),
)
def test_windows_have_both_ends_inside_and_never_leave_the_video(
    gaps: list[int], base: Fraction, num_windows: int
) -> None:
    ticks = np.cumsum([0, *gaps])
    chosen = window_indices(ticks, base, 2 * num_windows)
    assert len(chosen) == 2 * num_windows
    pairs = list(zip(chosen[::2], chosen[1::2], strict=True))
    assert all(0 <= first <= last < len(ticks) for first, last in pairs)
    assert all((ticks[last] - ticks[first]) * base < WINDOW_SECONDS for first, last in pairs)
    assert pairs == sorted(pairs)
    assert pairs[0][0] == 0
