"""Augmented clips match their augmented labels."""

from random import Random

import numpy as np
import torch

from tests.training.some_scenes import SCENE, THING
from training.augment import normalised, relight, turn, vary
from training.corpus import PIXELS, Labels, label, sampled_frames
from training.drawing import draw_frame
from training.scenes import LIVES, MOTIONS, NUM_SAMPLED

NUM_CLIPS = 32


def drawn() -> tuple[torch.Tensor, Labels]:
    pictures = np.stack([draw_frame(SCENE, frame, width=64, height=64) for frame in sampled_frames(SCENE)])
    return torch.from_numpy(pictures).expand(NUM_CLIPS, -1, -1, -1, -1), label([SCENE] * NUM_CLIPS)


def test_labels_match_the_position_of_the_thing_in_every_variant() -> None:
    clips, labels = vary(*drawn(), torch.Generator().manual_seed(1))
    motions, lives = set(), set()
    for number in range(NUM_CLIPS):
        motions.add(int(labels.motion[number, 1]))
        lives.add(int(labels.life[number, 0]))
        for frame in range(NUM_SAMPLED):
            near = (clips[number, frame].int() - torch.tensor(THING.rgb)).abs().sum(-1) < 60
            rows, columns = near.nonzero(as_tuple=True)
            found = torch.stack((columns.float().mean(), rows.float().mean())) + 0.5
            assert torch.allclose(found, labels.centre[number, 1, frame] * 64, atol=0.7)
            blue = (clips[number, frame, :, :, 2] > 180).any()
            assert blue == labels.visible[number, 0, frame]
    assert motions == {MOTIONS.index("left"), MOTIONS.index("right")}
    assert lives == {LIVES.index("appears"), LIVES.index("vanishes")}


def test_an_event_stays_the_first_frame_after_it() -> None:
    _, labels = vary(*drawn(), torch.Generator().manual_seed(2))
    for number in range(NUM_CLIPS):
        there = labels.visible[number, 0].tolist()
        assert labels.event[number, 0] == there.index(LIVES[int(labels.life[number, 0])] == "appears")
        assert labels.event[number, 1] == -1


def test_light_and_noise_are_small_and_repeatable() -> None:
    pixels = normalised(drawn()[0])
    assert pixels.shape == (NUM_CLIPS, NUM_SAMPLED, 3, PIXELS.size, PIXELS.size)
    first, second = (relight(pixels, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert 0 < (first - pixels).abs().mean() < 0.15


def test_a_mirrored_clip_equals_the_clip_of_its_mirrored_scene() -> None:
    frames, _ = drawn()
    clips, scenes = turn(frames, [SCENE] * NUM_CLIPS, Random(5))
    assert len({scene.things[1].motion for scene in scenes if scene}) == 2
    for clip, scene in zip(clips, scenes, strict=True):
        assert scene
        again = np.stack([draw_frame(scene, frame, width=64, height=64) for frame in sampled_frames(scene)])
        red, meant = (((pixels.astype(int) - THING.rgb) ** 2).sum(-1) < 3000 for pixels in (clip.numpy(), again))
        assert (red == meant).mean() > 0.99
    assert turn(frames[:4], [None] * 4, Random(5))[1] == [None] * 4
