"""Draws the frames of a scene, at any picture size."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from training.scenes import STRETCH, Background, Scene, Thing

Picture = npt.NDArray[np.uint8]
SUPERSAMPLING = 4
STAR_WAIST = 0.42
"""Distance of a star's inner corners from its centre, relative to its outer corners."""


def draw_frame(scene: Scene, frame: int, *, width: int, height: int) -> Picture:
    """Draw one frame [height, width, 3] of the clip; the stage is the square in its middle."""
    canvas = Image.fromarray(_draw_background(scene.background, width, height))
    moment = scene.moment(frame)
    for thing in scene.things:
        if thing.visible_at(moment):
            _draw_thing(canvas, thing, thing.centre_at(moment))
    picture = np.asarray(canvas)
    if scene.background.grain:
        noise = np.random.default_rng((scene.seed, frame)).normal(0, scene.background.grain, picture.shape)
        picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return picture


def _draw_background(background: Background, width: int, height: int) -> Picture:
    first, second = (np.asarray(colour, np.float32) for colour in background.colours)
    if background.colours[0] == background.colours[1]:
        return np.broadcast_to(first.astype(np.uint8), (height, width, 3)).copy()
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * math.cos(background.angle)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * math.sin(background.angle)
    share = np.clip((x + y) / 2 + 0.5, 0, 1)[..., None]  # [height, width, 1]
    mixed: Picture = (first * (1 - share) + second * share).astype(np.uint8)
    return mixed


def _draw_thing(canvas: Image.Image, thing: Thing, centre: tuple[float, float]) -> None:
    """Paint a thing with smooth edges; only a window around it is supersampled."""
    stage = min(canvas.size)
    x = centre[0] * stage + (canvas.width - stage) / 2
    y = centre[1] * stage + (canvas.height - stage) / 2
    half = thing.radius * STRETCH[thing.shape] * stage
    reach = math.ceil(half * (math.sqrt(2) if thing.shape == "square" else 1)) + 2
    left, top = math.floor(x) - reach, math.floor(y) - reach
    fine = SUPERSAMPLING
    mask = Image.new("L", (2 * reach * fine, 2 * reach * fine))
    pen = ImageDraw.Draw(mask)
    at_x, at_y = (x - left) * fine, (y - top) * fine
    if thing.shape == "circle":
        pen.ellipse((at_x - half * fine, at_y - half * fine, at_x + half * fine, at_y + half * fine), fill=255)
    else:
        corners = [
            (at_x + half * fine * radius * math.sin(angle), at_y - half * fine * radius * math.cos(angle))
            for radius, angle in _corners(thing)
        ]
        pen.polygon(corners, fill=255)
    canvas.paste(thing.rgb, (left, top), mask.reduce(fine))


def _corners(thing: Thing) -> list[tuple[float, float]]:
    """Return (distance from the centre relative to the stretch, angle from upright) of a polygon's corners."""
    match thing.shape:
        case "square":
            return [(math.sqrt(2), thing.turn + math.pi * (0.25 + 0.5 * number)) for number in range(4)]
        case "triangle":
            return [(1.0, thing.turn + math.pi * 2 / 3 * number) for number in range(3)]
        case _:
            return [(STAR_WAIST if number % 2 else 1.0, thing.turn + math.pi * 0.2 * number) for number in range(10)]
