"""Scenes with known content for tests."""

from dataclasses import replace

from training.scenes import COLOURS, RADII, Background, Scene, Thing

DARK = Background(colours=((20, 20, 24), (20, 20, 24)), angle=0.0, grain=0.0)
THING = Thing(
    shape="circle",
    colour="red",
    size="large",
    motion="left",
    life="always",
    event=0.0,
    rgb=COLOURS["red"],
    radius=RADII["large"][0],
    turn=0.0,
    centre=(0.5, 0.25),
    speed=0.4,
)
LATE = replace(
    THING,
    shape="star",
    colour="blue",
    size="small",
    motion="still",
    life="appears",
    event=0.5,
    rgb=COLOURS["blue"],
    radius=RADII["small"][0],
    centre=(0.5, 0.75),
    speed=0.0,
)
SCENE = Scene(things=(LATE, THING), background=DARK, seconds=4.0, fps=20.0, seed=0)
"""A large red circle that moves left, and from the middle on a small blue star that stays still."""
