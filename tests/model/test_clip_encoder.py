"""A clip's features do not depend on the other clips in its batch, nor on whether those can be encoded."""

import numpy as np
import pytest
from torch import Tensor

from model.clip_encoder import encode_clips
from model.families import family_names, load_family
from model.family import Family
from model.features import Features
from model.modalities import sees_videos
from model.video.inputs import ClipInputs

NOISE = 2**-8
"""Tolerance relative to the largest value.

In a batch, float32 numbers are added in another order. After the encoder's layers, this makes about 1e-6 of the largest
value, which rounding to float16 can turn into 2**-11 of a value, or a few times that where layers amplify it. Features
of another clip differ by 2**-6 or more."""


@pytest.fixture(scope="module", params=[name for name in family_names() if sees_videos(name)])
def family(request: pytest.FixtureRequest) -> Family:
    return load_family(str(request.param))


def drawn(family: Family, number: int, num_frames: int = 8) -> ClipInputs:
    """Random pixels of so many frames, or of as many as the family takes."""
    assert family.inputs is not None
    num_frames = min(max(num_frames, family.inputs.min_frames), family.inputs.max_frames)
    shape = family.inputs.pixels.shape(num_frames)
    return ClipInputs(np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("num_frames", [1, 8, 11])
def test_features_in_a_batch_equal_those_alone_within_float_noise(family: Family, num_frames: int) -> None:
    assert family.inputs is not None
    num_frames = min(max(num_frames, family.inputs.min_frames), family.inputs.max_frames)
    clips = [ClipInputs(drawn(family, number, num_frames).frames // (number + 1)) for number in range(5)]
    together = encode_clips(family, clips)
    for number, clip in enumerate(clips):
        [alone] = encode_clips(family, [clip])
        assert alone is not None
        assert together[number] is not None
        assert apart(together[number], alone) <= NOISE
        others = [other for n, other in enumerate(together) if n != number]
        assert min(apart(other, alone) for other in others) > 4 * NOISE, "no clip has another's"


def apart(some: Features | None, others: Features) -> float:
    assert some is not None
    one, other = (features["video"].astype(np.float32) for features in (some, others))
    return float(np.abs(one - other).max() / np.abs(other).max())


class Choosy:
    """A family whose encoder raises, or returns NaN, for a clip that is all white."""

    def __init__(self, family: Family, *, raises: bool) -> None:
        self.inputs, self._family, self._raises = family.inputs, family, raises

    def encode(self, pixel_values: Tensor) -> dict[str, Tensor]:
        white = (pixel_values == pixel_values.amax((0, 1, 3, 4), keepdim=True)).flatten(1).all(1)
        if self._raises and white.any():
            raise RuntimeError("out of memory")
        features = self._family.encode(pixel_values)
        features["video"][white] = float("nan")
        return features


@pytest.mark.parametrize("raises", [False, True])
def test_a_clip_that_cannot_be_encoded_fails_alone(family: Family, raises: bool) -> None:
    white = ClipInputs(np.full_like(drawn(family, 0).frames, 255))
    clips = [drawn(family, 1), white, drawn(family, 2)]
    first, bad, last = encode_clips(Choosy(family, raises=raises), clips)  # type: ignore[arg-type]
    assert bad is None
    for features, clip in ((first, clips[0]), (last, clips[2])):
        [alone] = encode_clips(family, [clip])
        assert alone is not None
        assert apart(features, alone) <= NOISE
