"""What a model takes of a clip."""

import pytest

from model.video.inputs import InputSpec, SoundSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec, InvalidFrameSpec


@pytest.mark.parametrize(
    ("count", "fewest", "most", "sentence"),
    [
        (7, 8, 8, "exactly 8 frames"),
        (9, 8, 8, "exactly 8 frames"),
        (33, 1, 32, "1 to 32 frames"),
    ],
)
def test_a_count_that_the_encoder_cannot_take_is_refused(count: int, fewest: int, most: int, sentence: str) -> None:
    with pytest.raises(InvalidFrameSpec, match=sentence) as refused:
        InputSpec(frames=FrameSpec(count=count), pixels=PixelSpec(), min_frames=fewest, max_frames=most)
    assert refused.value.param == "count"


def test_the_bounds_themselves_are_taken() -> None:
    for count in (1, 32):
        assert InputSpec(frames=FrameSpec(count=count), pixels=PixelSpec(), max_frames=32).frames.count == count


@pytest.mark.parametrize(("fit", "item_bytes"), [("crop", 1), ("nearest", 1), ("bilinear", 4), ("bicubic", 4)])
def test_the_bytes_of_resized_frames_are_known_before_they_are_decoded(fit: str, item_bytes: int) -> None:
    pixels = PixelSpec(size=4, fit=fit)  # type: ignore[arg-type]
    assert pixels.num_bytes(3) == 3 * 4 * 4 * 3 * item_bytes


def test_stretches_begin_at_equal_steps_and_end_with_the_track_only_by_one_rule() -> None:
    assert SoundSpec(count=4).starts(16_000 * 10) == [0, 32_000, 64_000, 96_000]
    assert SoundSpec(count=5, rule="end-points").starts(16_000 * 10) == [0, 32_000, 64_000, 96_000, 128_000]


def test_a_track_shorter_than_a_stretch_is_heard_from_its_start_each_time() -> None:
    assert SoundSpec(count=3).starts(31_999) == [0, 0, 0]
    assert SoundSpec(count=1, rule="end-points").starts(500_000) == [0]


def test_starts_are_computed_in_exact_fractions() -> None:
    """For this length, float arithmetic after the division gives a start that is one sample off."""
    spec = SoundSpec(count=8)
    exact = [spec.starts(length) for length in range(69_000, 70_000)]
    floats = [
        [int((length / 16_000 - 2) * place / 8 * 16_000) for place in range(8)] for length in range(69_000, 70_000)
    ]
    assert exact != floats
    assert (
        max(
            abs(one - other)
            for some, others in zip(exact, floats, strict=True)
            for one, other in zip(some, others, strict=True)
        )
        == 1
    )
