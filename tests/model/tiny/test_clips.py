"""The drawn clips show what their scenes say, and the sample that ships is one of them."""

from pathlib import Path

import numpy as np

from model.tiny.clips import COLOURS, SAMPLE_SEED, Scene, Thing, draw, sample_scene, write_clip
from model.video import FrameSpec, VideoLimits
from model.video_reader import open_video

SAMPLE = Path(__file__).parents[3] / "service" / "web" / "samples" / "shapes.mp4"


def place_of(colour: str, picture: np.ndarray) -> tuple[float, float]:
    """The (x, y) in the middle of all that has nearly that colour."""
    near = np.abs(picture.astype(int) - COLOURS[colour]).sum(-1) < 60
    rows, columns = np.nonzero(near)
    return float(columns.mean()), float(rows.mean())


def test_a_thing_is_where_its_scene_says() -> None:
    thing = Thing(shape="circle", colour="red", radius=20, centre=(100, 60), direction="left", speed=10)
    scene = Scene(things=(thing,), seconds=4.0)
    x, y = place_of("red", draw(scene, 4.0))
    assert abs(x - 80) < 1
    assert abs(y - 60) < 1


def test_a_seed_always_gives_the_same_scene_and_another_one_another() -> None:
    assert sample_scene(3) == sample_scene(3) != sample_scene(4)


def test_a_written_clip_moves_as_its_scene_says(tmp_path: Path) -> None:
    scene = sample_scene(3)
    check_clip(write_clip(scene, tmp_path / "a.mp4"), scene)


def test_the_sample_that_ships_is_small_and_shows_its_scene() -> None:
    assert SAMPLE.stat().st_size < 200_000
    check_clip(SAMPLE, sample_scene(SAMPLE_SEED))


def check_clip(path: Path, scene: Scene) -> None:
    with open_video(path, VideoLimits()) as video:
        facts = video.facts
        frames = list(video.frames(FrameSpec(count=4)))
    assert (facts.width, facts.height, facts.fps) == (scene.width, scene.height, scene.fps)
    assert facts.duration == scene.seconds
    for frame in frames:
        for thing in scene.things:
            drawn = place_of(thing.colour, frame.rgb)
            meant = thing.centre_at(frame.timestamp - scene.seconds / 2)
            assert np.abs(np.subtract(drawn, meant)).max() < 3
