"""Writes scenes of drawn shapes as real video files.

`python -m training.clips FOLDER` writes the sample clips that ship with the package.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from random import Random

import av
from av.video.stream import VideoStream

from training.drawing import Picture, draw_frame
from training.scenes import (
    COLOURS,
    RADII,
    Background,
    ColourName,
    Life,
    Motion,
    Rgb,
    Scene,
    Shape,
    Size,
    Thing,
)

ENCODERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", ".mp4", {"crf": "23", "preset": "veryfast"}),
    "vp9": ("libvpx-vp9", ".webm", {"crf": "32", "b": "0", "cpu-used": "8", "deadline": "realtime"}),
    "mpeg4": ("mpeg4", ".avi", {"qscale": "5"}),
    "mpeg2": ("mpeg2video", ".ts", {"qscale": "5"}),
    "vp8": ("libvpx", ".webm", {"crf": "20", "b": "1M", "cpu-used": "8", "deadline": "realtime"}),
}
"""Encoder, file suffix and options of each codec."""
SIDES = (128, 640)


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """The format of a clip: a key of `ENCODERS`, and its size in pixels (even numbers)."""

    codec: str
    width: int
    height: int

    @property
    def suffix(self) -> str:
        """The suffix of such files."""
        return ENCODERS[self.codec][1]


def draw_format(random: Random) -> Format:
    """Draw a format as in training: H.264, VP9 or MPEG-4, 128 to 640 pixels per side."""
    codec = random.choice(("h264", "vp9", "mpeg4"))
    width, height = (2 * round(SIDES[0] / 2 * (SIDES[1] / SIDES[0]) ** random.random()) for _ in range(2))
    return Format(codec=codec, width=width, height=height)


def write_scene(scene: Scene, form: Format, path: Path) -> Path:
    """Write a scene to a video file, and return its path."""
    pictures = (draw_frame(scene, frame, width=form.width, height=form.height) for frame in range(scene.num_frames))
    return write_pictures(pictures, form, path, fps=scene.fps)


def write_pictures(pictures: Iterable[Picture], form: Format, path: Path, *, fps: float) -> Path:
    """Write pictures uint8 [height, width, 3] to a video file, and return its path."""
    encoder, _, options = ENCODERS[form.codec]
    with av.open(path, "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1001), options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = form.width, form.height, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def _thing(
    colour: ColourName,
    shape: Shape,
    size: Size,
    motion: Motion,
    centre: tuple[float, float],
    *,
    life: Life = "always",
    event: float = 0.0,
) -> Thing:
    return Thing(
        shape=shape,
        colour=colour,
        size=size,
        motion=motion,
        life=life,
        event=event,
        rgb=COLOURS[colour],
        radius=sum(RADII[size]) / 2,
        turn=0.0,
        centre=centre,
        speed=0.0 if motion == "still" else 0.45,
    )


def _scene(*things: Thing, dark: tuple[Rgb, Rgb], fps: float, seconds: float) -> Scene:
    background = Background(colours=dark, angle=math.pi / 2, grain=0.0)
    return Scene(things=things, background=background, seconds=seconds, fps=fps, seed=0)


SAMPLES: dict[str, tuple[Scene, Format]] = {
    "shapes.mp4": (
        _scene(
            _thing("red", "circle", "large", "right", (0.5, 0.27)),
            _thing("blue", "square", "small", "left", (0.5, 0.74)),
            dark=((22, 22, 28), (22, 22, 28)),
            fps=24.0,
            seconds=4.0,
        ),
        Format(codec="h264", width=320, height=240),
    ),
    "arrival.mp4": (
        _scene(
            _thing("green", "star", "large", "still", (0.3, 0.66)),
            _thing("yellow", "triangle", "small", "down", (0.72, 0.4), life="appears", event=0.4),
            dark=((12, 14, 30), (34, 26, 40)),
            fps=30.0,
            seconds=6.0,
        ),
        Format(codec="h264", width=480, height=270),
    ),
    "farewell.webm": (
        _scene(
            _thing("orange", "square", "small", "right", (0.5, 0.2)),
            _thing("purple", "circle", "large", "up", (0.26, 0.65), life="vanishes", event=0.6),
            _thing("white", "star", "small", "still", (0.75, 0.7)),
            dark=((30, 30, 30), (10, 20, 24)),
            fps=25.0,
            seconds=8.0,
        ),
        Format(codec="vp9", width=288, height=384),
    ),
}
"""The clips that ship with the package, by file name."""


if __name__ == "__main__":
    for name, (scene, form) in SAMPLES.items():
        write_scene(scene, form, Path(sys.argv[1]) / name)
