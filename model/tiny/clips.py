"""Draws the clips of the default model's world, coloured shapes that move, and writes them as real video files.

`python -m model.tiny.clips OUT` writes the sample clip that ships with the package.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import av
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream
from PIL import Image, ImageDraw

Shape = Literal["circle", "square"]
Direction = Literal["left", "right", "up", "down"]
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (220, 40, 40),
    "green": (40, 180, 70),
    "blue": (50, 90, 230),
    "yellow": (235, 215, 50),
}
STEPS: dict[Direction, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
DARK: Colour = (22, 22, 28)
SUPERSAMPLING = 4
SAMPLE_SEED = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """A shape that moves in a straight line, in pixels; it is at `centre` in the middle of the clip."""

    shape: Shape
    colour: str
    radius: float
    centre: tuple[float, float]
    direction: Direction
    speed: float
    """Pixels per second."""

    def centre_at(self, seconds: float) -> tuple[float, float]:
        """(x, y) so many seconds after the middle of the clip; before it, they are negative."""
        step_x, step_y = STEPS[self.direction]
        x, y = self.centre
        return x + step_x * self.speed * seconds, y + step_y * self.speed * seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Things on a plain background, and the size and length of the clip that shows them."""

    things: tuple[Thing, ...]
    width: int = 320
    height: int = 240
    fps: int = 24
    seconds: float = 4.0
    background: Colour = DARK


def sample_scene(seed: int) -> Scene:
    """A circle and a square of different colours that cross the picture, one above the other."""
    random = Random(seed)  # noqa: S311 - nothing here is secret
    colours = random.sample(sorted(COLOURS), 2)
    directions: list[Direction] = ["left", "right"]
    random.shuffle(directions)
    shapes: list[Shape] = ["circle", "square"]
    things = tuple(
        Thing(
            shape=shape,
            colour=colour,
            radius=random.uniform(26, 34),
            centre=(160 + random.uniform(-8, 8), height),
            direction=direction,
            speed=random.uniform(45, 55),
        )
        for shape, colour, direction, height in zip(shapes, colours, directions, (70, 170), strict=True)
    )
    return Scene(things=things)


def draw(scene: Scene, seconds: float) -> npt.NDArray[np.uint8]:
    """The picture [height, width, 3] at a moment of the clip."""
    scale = SUPERSAMPLING
    canvas = Image.new("RGB", (scene.width * scale, scene.height * scale), scene.background)
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        x, y = (scale * place for place in thing.centre_at(seconds - scene.seconds / 2))
        # A square of the same area as the circle looks as large.
        half = scale * thing.radius * (math.sqrt(math.pi) / 2 if thing.shape == "square" else 1)
        outline = (x - half, y - half, x + half, y + half)
        if thing.shape == "circle":
            pen.ellipse(outline, fill=COLOURS[thing.colour])
        else:
            pen.rectangle(outline, fill=COLOURS[thing.colour])
    return np.asarray(canvas.reduce(scale))


def write_clip(scene: Scene, path: Path) -> Path:
    """The scene as an H.264 file."""
    with av.open(path, "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=scene.fps, options={"crf": "20", "g": str(scene.fps)})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        for number in range(round(scene.seconds * scene.fps)):
            picture = draw(scene, number / scene.fps)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    write_clip(sample_scene(SAMPLE_SEED), Path(sys.argv[1]))
