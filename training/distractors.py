"""Draws clips without known shapes, which the model must learn to recognise: textures, noise, text, plain colours.

There are no photographs among them. Overlapping blobs, and clouds with the spectrum of natural images, replace them.
"""

import math
import string
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from training.drawing import Picture
from training.scenes import Rgb

SPARE = 1.4
"""Size of a canvas relative to the picture that is cut from it."""


def draw_distractor(random: Random, *, num_frames: int, width: int, height: int) -> Iterator[Picture]:
    """Draw the pictures [height, width, 3] of one clip, in order."""
    kind = random.choices(tuple(KINDS), (5, 3, 2, 3, 3, 2))[0]
    return KINDS[kind](random, num_frames, width, height)


def _leaves(random: Random, num_frames: int, width: int, height: int) -> Iterator[Picture]:
    canvas = Image.fromarray(_heap(random, round(width * SPARE), round(height * SPARE)))
    if random.random() < 0.4:
        canvas = canvas.filter(ImageFilter.GaussianBlur(random.uniform(0.005, 0.02) * width))
    texture = _cloud(random, canvas.width, canvas.height) / 255
    textured = (np.asarray(canvas) * (1 + random.uniform(0, 0.8) * (texture - 0.5))).clip(0, 255).astype(np.uint8)
    walker = _walker(random) if random.random() < 0.5 else None
    for share, picture in _pan(random, textured, num_frames, width, height):
        yield walker(picture, share) if walker else picture


def _heap(random: Random, width: int, height: int) -> Picture:
    """Draw overlapping blobs of any size and colour, from back to front."""
    around = [random.randrange(256) for _ in range(3)]
    spread = random.uniform(15, 120)

    def colour() -> Rgb:
        red, green, blue = (min(255, max(0, round(random.gauss(value, spread)))) for value in around)
        return red, green, blue

    canvas = Image.new("RGB", (width, height), colour())
    pen = ImageDraw.Draw(canvas)
    for _ in range(random.randint(25, 200)):
        size = min(width, height) * min(0.6, 0.02 * random.paretovariate(0.9))
        x, y = random.uniform(0, width), random.uniform(0, height)
        stretch = random.uniform(0.3, 2)
        if random.random() < 0.5:
            pen.ellipse((x - size, y - size * stretch, x + size, y + size * stretch), fill=colour())
        else:
            angles = sorted(random.uniform(0, 2 * math.pi) for _ in range(random.randint(3, 6)))
            corners = [(x + size * math.cos(angle), y + size * stretch * math.sin(angle)) for angle in angles]
            pen.polygon(corners, fill=colour())
    return np.asarray(canvas)


def _walker(random: Random) -> Callable[[Picture, float], Picture]:
    """Return a function that paints a walking figure over a picture."""
    skin = tuple(random.randrange(256) for _ in range(3))
    clothes = tuple(random.randrange(256) for _ in range(3))
    start, way, size = random.uniform(0.1, 0.9), random.uniform(-0.5, 0.5), random.uniform(0.15, 0.4)

    def paint(picture: Picture, share: float) -> Picture:
        canvas = Image.fromarray(picture)
        pen = ImageDraw.Draw(canvas)
        unit = size * canvas.height
        x, y = (start + way * share) * canvas.width, canvas.height * 0.5
        swing = 0.4 * unit * math.sin(share * 20)
        pen.ellipse((x - unit * 0.2, y - unit * 1.1, x + unit * 0.2, y - unit * 0.7), fill=skin)
        pen.rectangle((x - unit * 0.25, y - unit * 0.7, x + unit * 0.25, y + unit * 0.2), fill=clothes)
        for side in (-1, 1):
            pen.line((x, y + unit * 0.2, x + side * swing, y + unit), fill=skin, width=max(1, round(unit * 0.15)))
        return np.asarray(canvas)

    return paint


def _clouds(random: Random, num_frames: int, width: int, height: int) -> Iterator[Picture]:
    cloud = _cloud(random, round(width * SPARE), round(height * SPARE))
    gain, lift = random.uniform(0.25, 1.2), random.uniform(-40, 60)
    canvas = (cloud * gain + lift).clip(0, 255).astype(np.uint8)
    for _, picture in _pan(random, canvas, num_frames, width, height):
        yield picture


def _cloud(random: Random, width: int, height: int) -> npt.NDArray[np.float32]:
    """Draw noise [height, width, 3], 0..255, whose amplitude falls with the frequency as in natural images."""
    generator = np.random.default_rng(random.getrandbits(32))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(generator.normal(size=(3, height, width))) / frequency ** random.uniform(0.8, 2)
    layers = np.fft.irfft2(spectrum, s=(height, width))  # [3, height, width]
    grey = layers.mean(0, keepdims=True)
    layers = grey + (layers - grey) * random.random()
    layers = (layers - layers.mean()) / (layers.std() + 1e-9)
    cloud: npt.NDArray[np.float32] = (128 + 60 * layers.transpose(1, 2, 0)).clip(0, 255).astype(np.float32)
    return cloud


def _static(random: Random, num_frames: int, width: int, height: int) -> Iterator[Picture]:
    generator = np.random.default_rng(random.getrandbits(32))
    grain = random.choice((1, 1, 2, 4, 8))
    channels = random.choice((1, 3))
    low, high = sorted((random.uniform(0, 120), random.uniform(90, 255)))
    for _ in range(num_frames):
        noise = generator.uniform(low, high, (-(-height // grain), -(-width // grain), channels))
        coarse = np.repeat(np.repeat(noise, grain, 0), grain, 1)[:height, :width]
        yield np.broadcast_to(coarse, (height, width, 3)).astype(np.uint8)


def _text(random: Random, num_frames: int, width: int, height: int) -> Iterator[Picture]:
    ground, ink = random.choice(((0, 255), (255, 0), (25, 220), (40, 200), (230, 30)))
    size = round(min(width, height) * random.uniform(0.07, 0.3))
    canvas = Image.new("RGB", (round(width * SPARE), round(height * SPARE)), (ground, ground, ground))
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(6, size))
    tint = tuple(random.choice((ink, ink, random.randrange(256))) for _ in range(3))
    for line in range(random.randint(2, 12)):
        words = "".join(random.choices(string.ascii_letters + "    .,!?0123456789", k=40))
        pen.text((random.uniform(-size, size), line * size * 1.2), words, fill=tint, font=font)
    for _, picture in _pan(random, np.asarray(canvas), num_frames, width, height):
        yield picture


def _plain(random: Random, num_frames: int, width: int, height: int) -> Iterator[Picture]:
    """Draw one colour, mostly dark, that may fade into another or flicker."""
    top = random.choice((0, 0, 70, 70, 255))
    first, second = (np.asarray([random.randint(0, top) for _ in range(3)], np.float32) for _ in range(2))
    if random.random() < 0.6:
        second = first
    slope = np.linspace(0, random.choice((0, 0, 40)), width, dtype=np.float32)[None, :, None]
    generator = np.random.default_rng(random.getrandbits(32))
    grain = random.choice((0, 0, random.uniform(1, 8)))
    for number in range(num_frames):
        share = number / num_frames
        level = first * (1 - share) + second * share + slope  # [1, width, 3]
        picture = np.broadcast_to(level, (height, width, 3))
        noise = generator.normal(0, grain, (height, width, 3)) if grain else 0
        yield (picture + noise).clip(0, 255).astype(np.uint8)


def _stripes(random: Random, num_frames: int, width: int, height: int) -> Iterator[Picture]:
    colours = np.asarray([[random.randrange(256) for _ in range(3)] for _ in range(2)], np.uint8)
    period, speed = random.uniform(0.08, 0.5) * min(width, height), random.uniform(-2, 2)
    angle = random.uniform(0, math.pi)
    checked = random.random() < 0.5
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    along = (x * math.cos(angle) + y * math.sin(angle)) / period
    across = (y * math.cos(angle) - x * math.sin(angle)) / period
    for number in range(num_frames):
        cells = np.floor(along + speed * number / num_frames) + (np.floor(across) if checked else 0)
        yield colours[cells.astype(np.int64) % 2]


def _pan(random: Random, canvas: Picture, num_frames: int, width: int, height: int) -> Iterator[tuple[float, Picture]]:
    """Cut pictures from a canvas along a straight path, or always at the same position; yield (progress, picture)."""
    spare = canvas.shape[1] - width, canvas.shape[0] - height
    start = [random.uniform(0, space) for space in spare]
    end = start if random.random() < 0.3 else [random.uniform(0, space) for space in spare]
    for number in range(num_frames):
        share = number / num_frames
        left, top = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
        yield share, canvas[top : top + height, left : left + width]


KINDS: dict[str, Callable[[Random, int, int, int], Iterator[Picture]]] = {
    "leaves": _leaves,
    "clouds": _clouds,
    "static": _static,
    "text": _text,
    "plain": _plain,
    "stripes": _stripes,
}
"""Functions that draw each kind of distractor."""
