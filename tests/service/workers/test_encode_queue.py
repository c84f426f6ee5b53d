"""Waiting clips are encoded together if they have one shape; clips with and without sound have different ones."""

from collections.abc import Sequence

import numpy as np
import pytest

from model.clip_encoder import encode_clips
from model.families import load_family
from model.family import Family
from model.features import unpack
from model.video.inputs import ClipInputs
from service.workers.encode_queue import EncodeQueue
from service.workers.protocol import Encode, Encoded, Refused, Report

NOISE = 2**-8
"""Of the largest value: batches are added in another order, and features are rounded to float16."""


@pytest.fixture(scope="module")
def family() -> Family:
    return load_family("video-llama")


def clip(number: int, *, num_samples: int) -> Encode:
    """A clip with 8 stretches of sound of this length; 0: without sound."""
    draw = np.random.default_rng(number)
    sound = draw.normal(0, 0.1, (8, num_samples)).astype(np.float32).tobytes() if num_samples else None
    return Encode(
        job_id=f"req_{number}",
        key=f"k{number}",
        frames=draw.integers(0, 256, (4, 28, 28, 3), dtype=np.uint8).tobytes(),
        shape=(4, 28, 28, 3),
        frame_indices=(0, 1, 2, 3),
        timestamps=(0.0, 0.1, 0.2, 0.3),
        sound=sound,
    )


def run(family: Family, clips: Sequence[Encode]) -> list[Report]:
    reports: list[Report] = []
    queue = EncodeQueue(family, max_num_batched_frames=64, report=reports.append)
    for each in clips:
        queue.add(each)
    while queue:
        queue.encode_batch(max_clips=None)
    return reports


def test_clips_with_and_without_sound_are_separate_batches(family: Family) -> None:
    lengths = (32_000, 0, 32_000, 20_000, 0, 32_000)
    clips = [clip(number, num_samples=length) for number, length in enumerate(lengths)]
    encoded = {each.job_id: each for each in run(family, clips) if isinstance(each, Encoded)}
    assert [encoded[each.job_id].num_batched_clips for each in clips] == [3, 2, 3, 1, 2, 3]
    for each in clips:
        features = unpack(encoded[each.job_id].blob, key=each.key, parts=family.parts)
        assert features.keys() == ({"video", "audio"} if each.sound else {"video"})
        frames = np.frombuffer(each.frames, np.uint8).reshape(each.shape)
        sound = None if each.sound is None else np.frombuffer(each.sound, np.float32).reshape(8, -1)
        [alone] = encode_clips(family, [ClipInputs(frames, sound)])
        assert alone is not None
        for part, expected in alone.items():
            difference = np.abs(features[part].astype(np.float32) - expected.astype(np.float32)).max()
            assert difference <= NOISE * np.abs(expected).max()


def test_sound_of_another_length_than_its_stretches_is_refused_alone(family: Family) -> None:
    cut = clip(1, num_samples=1_000)
    assert cut.sound is not None
    bad = Encode(
        job_id="req_bad",
        key="k",
        frames=cut.frames,
        shape=cut.shape,
        frame_indices=cut.frame_indices,
        timestamps=cut.timestamps,
        sound=cut.sound[:-4],
    )
    refused, good = run(family, [bad, clip(2, num_samples=1_000)])
    assert isinstance(refused, Refused) and refused.code == "encode_failed"
    assert isinstance(good, Encoded)


def test_a_warm_up_gives_the_parts_of_frames_and_of_sound(family: Family) -> None:
    features = EncodeQueue(family, max_num_batched_frames=8, report=lambda _: None).warm_up()
    assert features.keys() == {"video", "audio"}
