"""Drawn scenes are within their bounds."""

import math
from collections import Counter
from random import Random

from tests.training.some_scenes import LATE, SCENE
from training.scenes import EVENTS, MAX_THINGS, NUM_SAMPLED, RADII, REACH, SECONDS, draw_scene

SCENES = [draw_scene(Random(number)) for number in range(150)]


def test_visible_things_stay_on_the_stage_and_apart() -> None:
    for scene in SCENES:
        for step in range(33):
            moment = step / 32
            there = [(thing, thing.centre_at(moment)) for thing in scene.things if thing.visible_at(moment)]
            for number, (thing, centre) in enumerate(there):
                reach = thing.radius * REACH[thing.shape]
                assert all(reach <= place <= 1 - reach for place in centre)
                for other, place in there[:number]:
                    assert math.dist(centre, place) > reach + other.radius * REACH[other.shape]


def test_numbers_of_things_are_equally_likely_and_colours_are_unique() -> None:
    counts = Counter(len(scene.things) for scene in SCENES)
    assert sorted(counts) == list(range(1, MAX_THINGS + 1))
    assert min(counts.values()) > 25
    assert all(len({thing.colour for thing in scene.things}) == len(scene.things) for scene in SCENES)


def test_small_and_large_differ_clearly_and_events_are_not_at_the_ends() -> None:
    assert RADII["large"][0] > 1.4 * RADII["small"][1]
    for scene in SCENES:
        assert SECONDS[0] <= scene.seconds <= SECONDS[1]
        for thing in scene.things:
            if thing.life != "always":
                assert EVENTS[0] - 0.5 <= thing.event * NUM_SAMPLED <= EVENTS[1] + 0.5


def test_an_event_happens_with_the_first_frame_that_shows_it() -> None:
    first = next(frame for frame in range(SCENE.num_frames) if LATE.visible_at(SCENE.moment(frame)))
    assert SCENE.event_seconds(LATE) == first / SCENE.fps == 2.0


def test_a_seed_always_gives_the_same_scene_and_another_one_another() -> None:
    assert draw_scene(Random(3)) == SCENES[3] != SCENES[4]
