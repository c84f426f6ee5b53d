"""Describes scenes of one to three coloured shapes that move, appear and vanish, and draws them at random.

Positions and lengths are fractions of the stage, which is the square in the middle of the picture that VideoChat
crops. Moments are fractions of the clip.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

Shape = Literal["circle", "square", "triangle", "star"]
ColourName = Literal["red", "green", "blue", "yellow", "purple", "orange", "cyan", "white"]
Size = Literal["small", "large"]
Motion = Literal["left", "right", "up", "down", "still"]
Life = Literal["always", "appears", "vanishes"]
Rgb = tuple[int, int, int]

SHAPES: tuple[Shape, ...] = get_args(Shape)
COLOUR_NAMES: tuple[ColourName, ...] = get_args(ColourName)
SIZES: tuple[Size, ...] = get_args(Size)
MOTIONS: tuple[Motion, ...] = get_args(Motion)
LIVES: tuple[Life, ...] = get_args(Life)

COLOURS: dict[ColourName, Rgb] = {
    "red": (220, 40, 40),
    "green": (40, 180, 70),
    "blue": (50, 90, 230),
    "yellow": (235, 215, 50),
    "purple": (150, 60, 200),
    "orange": (240, 130, 30),
    "cyan": (60, 210, 220),
    "white": (240, 240, 240),
}
STEPS: dict[Motion, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "still": (0, 0),
}
RADII: dict[Size, tuple[float, float]] = {"small": (0.095, 0.11), "large": (0.155, 0.175)}
"""Radii of circles; the other shapes are stretched to look equally large."""
STRETCH: dict[Shape, float] = {"circle": 1.0, "square": math.sqrt(math.pi) / 2, "triangle": 1.4, "star": 1.4}
"""Factor from a circle's radius to half a square's side, or to the farthest corner of the other shapes."""
REACH: dict[Shape, float] = {"circle": 1.0, "square": math.sqrt(math.pi / 2), "triangle": 1.4, "star": 1.4}
"""Factor from a circle's radius to the farthest point of the shape."""

MAX_THINGS = 3
NUM_SAMPLED = 8
"""Frames that the model samples from a clip."""
EVENTS = (2, 5)
"""Range of the first sampled frame after a thing appeared or vanished."""
TRAVEL = (0.04, 0.065)
"""Range of the distance that a moving thing covers between two sampled frames."""
FPS = (8.0, 10.0, 12.0, 15.0, 20.0, 24.0, 25.0, 30.0, 50.0, 60.0)
SECONDS = (1.0, 20.0)
MARGIN = 0.015


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """A shape that stays still or moves in a straight line at constant speed."""

    shape: Shape
    colour: ColourName
    size: Size
    motion: Motion
    life: Life
    event: float
    """The moment at which it appears or vanishes; unused if it does neither."""
    rgb: Rgb
    radius: float
    turn: float
    """Radians."""
    centre: tuple[float, float]
    """(x, y) in the middle of the clip."""
    speed: float
    """Stages per clip."""

    def centre_at(self, moment: float) -> tuple[float, float]:
        """Return (x, y) at a moment."""
        step_x, step_y = STEPS[self.motion]
        way = self.speed * (moment - 0.5)
        return self.centre[0] + step_x * way, self.centre[1] + step_y * way

    def visible_at(self, moment: float) -> bool:
        """Return whether it is visible at a moment."""
        match self.life:
            case "always":
                return True
            case "appears":
                return moment >= self.event
            case "vanishes":
                return moment < self.event

    @property
    def span(self) -> tuple[float, float]:
        """The first and last moment at which it is visible."""
        match self.life:
            case "always":
                return 0.0, 1.0
            case "appears":
                return self.event, 1.0
            case "vanishes":
                return 0.0, self.event


@dataclass(frozen=True, kw_only=True, slots=True)
class Background:
    """A gradient between two dark colours, which are equal for a plain background, and noise."""

    colours: tuple[Rgb, Rgb]
    angle: float
    """Angle of the gradient, in radians."""
    grain: float
    """Standard deviation of the noise, in steps of 1/255; it differs in every frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """The content and length of a clip; no two things have the same colour."""

    things: tuple[Thing, ...]
    background: Background
    seconds: float
    fps: float
    seed: int
    """Seed of the noise."""

    @property
    def num_frames(self) -> int:
        """Number of frames of the whole clip."""
        return max(1, round(self.seconds * self.fps))

    def moment(self, frame: int) -> float:
        """Return the moment of a frame."""
        return frame / self.num_frames

    def event_seconds(self, thing: Thing) -> float:
        """Return the seconds at which a thing appears or vanishes: the time of the first frame that shows it."""
        return math.ceil(thing.event * self.num_frames - 1e-9) / self.fps


def draw_scene(random: Random) -> Scene:
    """Draw a scene; each number of things is equally likely."""
    num_things = random.randint(1, MAX_THINGS)
    seconds = round(SECONDS[0] * (SECONDS[1] / SECONDS[0]) ** random.random(), 2)
    return Scene(
        things=_draw_things(random, num_things),
        background=_draw_background(random),
        seconds=seconds,
        fps=random.choice(FPS),
        seed=random.getrandbits(32),
    )


def _draw_things(random: Random, count: int) -> tuple[Thing, ...]:
    """Draw things that always stay within the stage and apart from each other."""
    while True:
        colours = random.sample(COLOUR_NAMES, count)
        kinds: list[_Kind] = [
            (colour, random.choice(SHAPES), random.choice(SIZES), random.choice(MOTIONS), _draw_life(random))
            for colour in colours
        ]
        for _ in range(40):
            things = tuple(_place(random, kind) for kind in kinds)
            if all(_apart(one, other) for number, one in enumerate(things) for other in things[:number]):
                return things


_Kind = tuple[ColourName, Shape, Size, Motion, tuple[Life, float]]


def _place(random: Random, kind: _Kind) -> Thing:
    colour, shape, size, motion, life = kind
    radius = random.uniform(*RADII[size])
    speed = 0.0 if motion == "still" else NUM_SAMPLED * random.uniform(*TRAVEL)
    start, end = _span(*life)
    step_x, step_y = STEPS[motion]
    low = MARGIN + radius * REACH[shape]

    def within(step: int) -> float:
        # The middle of its path, such that it stays on the stage while it is visible.
        before, after = sorted((step * speed * (start - 0.5), step * speed * (end - 0.5)))
        return random.uniform(low - before, max(low - before, 1 - low - after))

    return Thing(
        shape=shape,
        colour=colour,
        size=size,
        motion=motion,
        life=life[0],
        event=life[1],
        rgb=_draw_rgb(random, colour),
        radius=radius,
        turn=random.uniform(-0.15, 0.15),
        centre=(within(step_x), within(step_y)),
        speed=speed,
    )


def _span(life: Life, event: float) -> tuple[float, float]:
    return {"always": (0.0, 1.0), "appears": (event, 1.0), "vanishes": (0.0, event)}[life]


def _draw_life(random: Random) -> tuple[Life, float]:
    life = random.choices(LIVES, (0.5, 0.25, 0.25))[0]
    # Between two sampled frames, which are 1/8 of the clip apart; the first is at 1/16.
    event = (random.randint(*EVENTS) - 0.5 + random.uniform(0.1, 0.9)) / NUM_SAMPLED if life != "always" else 0.0
    return life, event


def _apart(one: Thing, other: Thing) -> bool:
    """Return whether two things stay apart while both are visible."""
    gap = one.radius * REACH[one.shape] + other.radius * REACH[other.shape] + MARGIN
    start, end = max(one.span[0], other.span[0]), min(one.span[1], other.span[1])
    steps = 16
    moments = [start + (end - start) * step / steps for step in range(steps + 1)] if start <= end else []
    return all(math.dist(one.centre_at(moment), other.centre_at(moment)) > gap for moment in moments)


def _draw_rgb(random: Random, colour: ColourName) -> Rgb:
    brightness = random.uniform(0.85, 1.05)
    red, green, blue = (
        min(255, max(0, round(value * brightness + random.uniform(-10, 10)))) for value in COLOURS[colour]
    )
    return red, green, blue


def _draw_background(random: Random) -> Background:
    def dark() -> Rgb:
        level = random.uniform(0, 55)
        red, green, blue = (round(max(0.0, level + random.uniform(-12, 12))) for _ in range(3))
        return red, green, blue

    first = dark()
    kind = random.choice(("plain", "gradient", "grain"))
    return Background(
        colours=(first, dark() if kind == "gradient" else first),
        angle=random.uniform(0, 2 * math.pi),
        grain=random.uniform(2, 7) if kind == "grain" else 0.0,
    )


def in_order(things: Sequence[Thing]) -> list[Thing]:
    """Return things in the order in which answers name them: that of `COLOUR_NAMES`."""
    return sorted(things, key=lambda thing: COLOUR_NAMES.index(thing.colour))
