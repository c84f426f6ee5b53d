"""The clips that the default model learns from: what each shows, as the frames that it would see of a file.

Clips are drawn once, straight at the encoder's size, and kept in shards; a shard that is there is not drawn again.
Labels are computed from the scenes, which a seed and a number name.
"""

import io
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from model.video.pixels import PixelSpec, resize
from model.video.spec import FRAME_RULES
from training.distractors import draw_distractor
from training.drawing import Picture, draw_frame
from training.world import COLOUR_NAMES, LIVES, MAX_THINGS, MOTIONS, NUM_SAMPLED, SHAPES, SIZES, Scene, draw_scene

PIXELS = PixelSpec(size=64)
SHARD = 500
"""Clips in one file."""
DISTRACTORS = 0.12
"""Share of clips that are not of the world."""
DRAWN_SIDES = (64, 96, 128, 192)
"""Pictures are drawn at one of these sizes, compressed, and brought to the encoder's, as a file's would be."""


def scene_of(seed: int, number: int) -> Scene | None:
    """What a clip of the corpus shows; None where it is a distractor."""
    random = Random(f"{seed}:{number}")
    return None if random.random() < DISTRACTORS else draw_scene(random)


def sampled_frames(scene: Scene) -> list[int]:
    """The frames of a clip that the model sees."""
    return FRAME_RULES["videochat"](scene.num_frames, NUM_SAMPLED)


@dataclass(frozen=True, slots=True)
class Labels:
    """What clips show, thing by thing (axis 1); -1 and zeros where a clip has fewer things."""

    colour: Tensor  # [N, things]
    shape: Tensor
    size: Tensor
    motion: Tensor
    life: Tensor
    event: Tensor
    """The first sampled frame after it appeared or vanished; -1 where it is there all the time."""
    radius: Tensor  # [N, things] of the stage
    centre: Tensor  # [N, things, frames, 2] of the stage
    visible: Tensor  # [N, things, frames]

    def __getitem__(self, rows: Tensor | slice) -> "Labels":
        return Labels(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.colour)


def label(scenes: list[Scene | None]) -> Labels:
    """The labels of every scene, in order."""
    count = len(scenes)
    kinds = np.full((6, count, MAX_THINGS), -1, np.int64)
    radius = np.zeros((count, MAX_THINGS), np.float32)
    centre = np.zeros((count, MAX_THINGS, NUM_SAMPLED, 2), np.float32)
    visible = np.zeros((count, MAX_THINGS, NUM_SAMPLED), bool)
    for row, scene in enumerate(scenes):
        for column, thing in enumerate(scene.things if scene else ()):
            assert scene is not None
            moments = [scene.moment(frame) for frame in sampled_frames(scene)]
            there = [thing.visible_at(moment) for moment in moments]
            kinds[:, row, column] = (
                COLOUR_NAMES.index(thing.colour),
                SHAPES.index(thing.shape),
                SIZES.index(thing.size),
                MOTIONS.index(thing.motion),
                LIVES.index(thing.life),
                -1 if all(there) else there.index(thing.life == "appears"),
            )
            radius[row, column] = thing.radius
            centre[row, column] = [thing.centre_at(moment) for moment in moments]
            visible[row, column] = there
    return Labels(*map(torch.from_numpy, (*kinds, radius, centre, visible)))


def draw_clip(seed: int, number: int) -> Picture:
    """The frames [frames, side, side, 3] that the model sees of a clip of the corpus."""
    random = Random(f"{seed}:{number}:look")
    side = random.choice(DRAWN_SIDES)
    quality = random.choice((None, random.randint(30, 95)))
    scene = scene_of(seed, number)
    if scene is None:
        pictures = list(draw_distractor(random, num_frames=NUM_SAMPLED, width=side, height=side))
    else:
        pictures = [draw_frame(scene, frame, width=side, height=side) for frame in sampled_frames(scene)]
    return np.stack([resize(_compressed(picture, quality), PIXELS) for picture in pictures])


def _compressed(picture: Picture, quality: int | None) -> Picture:
    """A picture with the blocks and the coarse colours of a compressed one."""
    if quality is None:
        return picture
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file))


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """So many clips of one seed, in a folder."""

    folder: Path
    seed: int
    count: int

    def draw(self) -> None:
        """Draw the shards that are missing, on every core, with a progress bar."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [first for first in range(0, self.count, SHARD) if not self._shard(first).exists()]
        with (
            ProcessPoolExecutor() as pool,
            tqdm(desc="clips", total=self.count, initial=self.count - SHARD * len(missing), unit="clip") as bar,
        ):
            for _ in pool.map(self._draw_shard, missing):
                bar.update(SHARD)

    def scenes(self) -> list[Scene | None]:
        """What every clip shows."""
        return [scene_of(self.seed, number) for number in range(self.count)]

    def frames(self) -> npt.NDArray[np.uint8]:
        """Every clip [N, frames, side, side, 3]."""
        out = np.empty((self.count, NUM_SAMPLED, PIXELS.size, PIXELS.size, 3), np.uint8)
        for first in range(0, self.count, SHARD):
            out[first : first + SHARD] = np.load(self._shard(first))
        return out

    def _shard(self, first: int) -> Path:
        return self.folder / f"clips-{self.seed}-{first:06}.npy"

    def _draw_shard(self, first: int) -> None:
        path = self._shard(first)
        partial = path.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, np.stack([draw_clip(self.seed, number) for number in range(first, first + SHARD)]))
        partial.rename(path)
