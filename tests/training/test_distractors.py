"""Distractors can be drawn at any size."""

from random import Random

import numpy as np
import pytest

from training.distractors import KINDS, draw_distractor


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "height"), [(64, 64), (130, 48), (50, 200)])
def test_a_distractor_has_the_requested_size_and_number_of_pictures(kind: str, width: int, height: int) -> None:
    for seed in range(4):
        pictures = list(KINDS[kind](Random(seed), 5, width, height))
        assert [picture.shape for picture in pictures] == [(height, width, 3)] * 5
        assert all(picture.dtype == np.uint8 for picture in pictures)


def test_a_seed_repeats_a_distractor() -> None:
    first, second = (np.stack(list(draw_distractor(Random(7), num_frames=3, width=40, height=30))) for _ in range(2))
    assert np.array_equal(first, second)
