"""Augments clips whose content is known: mirrored, upside down, backwards, brighter or darker, blurred, noisy."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import torch
from torch import Generator, Tensor
from torch.nn import functional

from training.corpus import PIXELS, Labels
from training.scenes import LIVES, MOTIONS, NUM_SAMPLED, Scene, Thing

MIRRORED = torch.tensor([MOTIONS.index(motion) for motion in ("right", "left", "up", "down", "still")])
UPSIDE_DOWN = torch.tensor([MOTIONS.index(motion) for motion in ("left", "right", "down", "up", "still")])
BACKWARDS = torch.tensor([MOTIONS.index(motion) for motion in ("right", "left", "down", "up", "still")])
BACKWARDS_LIFE = torch.tensor([LIVES.index(life) for life in ("always", "vanishes", "appears")])


def normalised(frames: Tensor) -> Tensor:
    """Convert uint8 [N, T, S, S, 3] to the encoder's input [N, T, 3, S, S]."""
    scaled = frames.permute(0, 1, 4, 2, 3).float() / 255
    return (scaled - torch.tensor(PIXELS.mean)[:, None, None]) / torch.tensor(PIXELS.std)[:, None, None]


def vary(frames: Tensor, labels: Labels, generator: Generator) -> tuple[Tensor, Labels]:
    """Mirror, turn upside down and reverse each clip uint8 [N, T, S, S, 3], each with probability one half."""

    def toss() -> Tensor:
        return torch.rand(len(frames), generator=generator) < 0.5

    mirrored, upside_down, backwards = toss(), toss(), toss()
    frames, centre, motion, visible = frames.clone(), labels.centre.clone(), labels.motion, labels.visible.clone()
    frames[mirrored] = frames[mirrored].flip(3)
    centre[mirrored, ..., 0] = 1 - centre[mirrored, ..., 0]
    motion = _mapped(motion, MIRRORED, mirrored)
    frames[upside_down] = frames[upside_down].flip(2)
    centre[upside_down, ..., 1] = 1 - centre[upside_down, ..., 1]
    motion = _mapped(motion, UPSIDE_DOWN, upside_down)
    frames[backwards] = frames[backwards].flip(1)
    centre[backwards] = centre[backwards].flip(2)
    visible[backwards] = visible[backwards].flip(2)
    motion = _mapped(motion, BACKWARDS, backwards)
    life = _mapped(labels.life, BACKWARDS_LIFE, backwards)
    event = labels.event.where(~backwards[:, None] | (labels.event < 0), NUM_SAMPLED - labels.event)
    varied = Labels(labels.colour, labels.shape, labels.size, motion, life, event, labels.radius, centre, visible)
    return frames, varied


def turn(frames: Tensor, scenes: Sequence[Scene | None], random: Random) -> tuple[Tensor, list[Scene | None]]:
    """Mirror and turn some of the clips uint8 [N, T, S, S, 3] at random; return them with their changed scenes."""
    turned, shown = frames.clone(), list(scenes)
    for row, scene in enumerate(scenes):
        for axis, motions in ((0, MIRRORED), (1, UPSIDE_DOWN)):
            if random.random() < 0.5:
                turned[row] = turned[row].flip(2 - axis)
                shown[row] = scene and _turned(shown[row] or scene, axis, motions)
    return turned, shown


def _turned(scene: Scene, axis: int, motions: Tensor) -> Scene:
    def turned(thing: Thing) -> Thing:
        x, y = thing.centre
        motion = MOTIONS[int(motions[MOTIONS.index(thing.motion)])]
        return replace(thing, motion=motion, centre=(x, 1 - y) if axis else (1 - x, y))

    return replace(scene, things=tuple(map(turned, scene.things)))


def relight(pixels: Tensor, generator: Generator) -> Tensor:
    """Make some of the normalised clips [N, T, 3, S, S] brighter or darker, blurred, or noisy."""
    count = len(pixels)

    def some(share: float) -> Tensor:
        return (torch.rand(count, 1, 1, 1, 1, generator=generator) < share).float()

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, 1, generator=generator)

    pixels = pixels * (1 + some(0.5) * between(-0.1, 0.1)) + some(0.5) * between(-0.08, 0.08)
    soft = (torch.rand(count, generator=generator) < 0.4).nonzero().flatten()
    pixels = pixels.index_copy(0, soft, _softened(pixels[soft], generator))
    noisy = (torch.rand(count, generator=generator) < 0.3).nonzero().flatten()
    noise = torch.randn(pixels[noisy].shape, generator=generator) * between(0.0, 0.12)[noisy]
    return pixels.index_add(0, noisy, noise)


def _softened(pixels: Tensor, generator: Generator) -> Tensor:
    blurred = functional.avg_pool2d(pixels.flatten(0, 1), 3, stride=1, padding=1, count_include_pad=False)
    share = torch.rand(len(pixels), 1, 1, 1, 1, generator=generator) / 2
    return pixels.lerp(blurred.reshape(pixels.shape), share)


def _mapped(values: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    return values.where(~rows[:, None] | (values < 0), table[values.clamp(min=0)])
