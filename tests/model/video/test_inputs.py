"""What a model takes of a clip."""

import pytest

from model.video.inputs import InputSpec
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
