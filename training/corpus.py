"""Draws the training clips, and computes their labels.

A clip is drawn as the frames that the model would sample from a file. Clips are drawn once, at the encoder's size, and
saved in shards; shards that exist are not drawn again. Scenes and labels follow from a seed and a clip number.
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
from training.scenes import COLOUR_NAMES, LIVES, MAX_THINGS, MOTIONS, NUM_SAMPLED, SHAPES, SIZES, Scene, draw_scene

PIXELS = PixelSpec(size=64)
SHARD = 500
"""Clips in one file."""
DISTRACTORS = 0.12
"""Share of clips without known shapes."""
DRAWN_SIDES = (64, 96, 128, 192)
"""Sizes to draw pictures at, before they are compressed and resized to the encoder's size, like those of a file."""


def scene_of(seed: int, number: int) -> Scene | None:
    """Return the scene of a clip of the corpus; None if it is a distractor."""
    random = Random(f"{seed}:{number}")
    return None if random.random() < DISTRACTORS else draw_scene(random)


def sampled_frames(scene: Scene) -> list[int]:
    """Return the indices of the frames that the model samples from a clip."""
    return FRAME_RULES["videochat"](scene.num_frames, NUM_SAMPLED)


@dataclass(frozen=True, slots=True)
class Labels:
    """The things in clips (axis 1); -1 and zeros where a clip has fewer things."""

    colour: Tensor  # [N, things]
    shape: Tensor
    size: Tensor
    motion: Tensor
    life: Tensor
    event: Tensor
    """The first sampled frame after the thing appeared or vanished; -1 if it is always visible."""
    radius: Tensor  # [N, things] of the stage
    centre: Tensor  # [N, things, frames, 2] of the stage
    visible: Tensor  # [N, things, frames]

    def __getitem__(self, rows: Tensor | slice) -> "Labels":
        return Labels(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.colour)


def label(scenes: list[Scene | None]) -> Labels:
    """Return the labels of every scene, in order."""
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
    """Draw the sampled frames [frames, side, side, 3] of a clip of the corpus."""
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
    """Return a picture with the artefacts of compression."""
    if quality is None:
        return picture
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file))


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """`count` clips of one seed, in a folder."""

    folder: Path
    seed: int
    count: int

    def draw(self) -> None:
        """Draw the missing shards, on all cores, with a progress bar."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [first for first in range(0, self.count, SHARD) if not self._shard(first).exists()]
        with (
            ProcessPoolExecutor() as pool,
            tqdm(desc="clips", total=self.count, initial=self.count - SHARD * len(missing), unit="clip") as bar,
        ):
            for _ in pool.map(self._draw_shard, missing):
                bar.update(SHARD)

    def scenes(self) -> list[Scene | None]:
        """Return the scene of every clip."""
        return [scene_of(self.seed, number) for number in range(self.count)]

    def frames(self) -> npt.NDArray[np.uint8]:
        """Read every clip [N, frames, side, side, 3]."""
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
