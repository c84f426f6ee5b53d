"""Written clips show their scenes in every codec, and the shipped samples are such clips."""

from pathlib import Path
from random import Random

import numpy as np
import pytest

from model.video.reader import open_video
from model.video.spec import FrameSpec, VideoLimits
from tests.training.some_scenes import SCENE
from training.clips import ENCODERS, SAMPLES, SIDES, Format, draw_format, write_scene
from training.scenes import Scene

SAMPLE_FOLDER = Path(__file__).parents[2] / "service" / "web" / "samples"


@pytest.mark.parametrize("codec", ENCODERS)
def test_a_written_clip_shows_its_scene(tmp_path: Path, codec: str) -> None:
    form = Format(codec=codec, width=256, height=160)
    check_clip(write_scene(SCENE, form, tmp_path / f"a{form.suffix}"), SCENE, form)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_that_ships_is_small_and_shows_its_scene(name: str) -> None:
    path = SAMPLE_FOLDER / name
    assert path.stat().st_size < 200_000
    check_clip(path, *SAMPLES[name])


def test_every_sample_is_offered_on_the_page() -> None:
    page = (SAMPLE_FOLDER.parent / "index.html").read_text()
    assert sorted(path.name for path in SAMPLE_FOLDER.iterdir()) == sorted(SAMPLES)
    assert all(f'data-sample="{name}"' in page for name in SAMPLES)


def test_drawn_formats_are_within_bounds() -> None:
    for number in range(50):
        form = draw_format(Random(number))
        assert all(SIDES[0] <= side <= SIDES[1] and side % 2 == 0 for side in (form.width, form.height))
        assert form.codec in ("h264", "vp9", "mpeg4")


def check_clip(path: Path, scene: Scene, form: Format) -> None:
    with open_video(path, VideoLimits()) as video:
        facts = video.facts
        frames = list(video.frames(FrameSpec(count=8)))
    assert (facts.width, facts.height, round(facts.fps, 2)) == (form.width, form.height, scene.fps)
    assert abs(facts.duration - scene.seconds) < 2 / scene.fps
    stage = min(form.width, form.height)
    edge = np.subtract((form.width, form.height), stage) / 2
    for frame in frames:
        moment = scene.moment(frame.index)
        for thing in scene.things:
            near = np.abs(frame.rgb.astype(int) - thing.rgb).sum(-1) < 110
            assert (near.sum() > 0.5 * thing.radius**2 * stage**2) == thing.visible_at(moment)
            if thing.visible_at(moment):
                rows, columns = np.nonzero(near)
                meant = np.multiply(thing.centre_at(moment), stage) + edge
                assert np.abs((columns.mean(), rows.mean()) - meant).max() < 4
