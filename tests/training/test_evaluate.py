"""The evaluation counts right answers."""

from pathlib import Path

import pytest

from model.families import load_family
from training.clips import ENCODERS, SIDES
from training.dialogues import KINDS, Exchange
from training.evaluate import UNSEEN_FORMATS, JudgedAnswer, PlannedClip, _path, evaluate, interval, summary
from training.scenes import FPS

COLOUR = Exchange(kind="colour", question="What colour is it?", answer="The star is red.")


def test_shares_come_with_wilson_s_interval() -> None:
    assert interval(95, 100) == pytest.approx((0.8882, 0.9785), abs=1e-3)
    low, high = interval(20, 20)
    assert 0.83 < low < 0.85
    assert high == pytest.approx(1)
    assert interval(0, 0) == (0.0, 1.0)


def test_only_the_right_answer_counts() -> None:
    given = ("The star is red.", "The star is blue.", "the star is red")
    found = summary(JudgedAnswer(group="held out", exchange=COLOUR, given=text) for text in given)
    assert found["held out"]["colour"]["right"] == found["held out"]["all"]["right"] == 1
    assert found["held out"]["all"]["share"] == pytest.approx(1 / 3, abs=1e-4)


def test_unseen_formats_are_not_used_in_training() -> None:
    for codec, width, height, fps in UNSEEN_FORMATS:
        assert codec in ENCODERS.keys() - {"h264", "vp9", "mpeg4"}
        assert fps not in FPS
        assert not all(SIDES[0] <= side <= SIDES[1] for side in (width, height))


def test_every_group_and_kind_is_asked_about_through_real_files(tmp_path: Path) -> None:
    groups = {"held out": 3, "unseen": 1, "other": 1}
    clips = [
        PlannedClip(group=group, number=number, path=_path(tmp_path, group, number, 5), seed=5)
        for group, count in groups.items()
        for number in range(count)
    ]
    judged = evaluate(load_family("videochat"), clips)
    assert {answer.group for answer in judged} == {"held out", "held out, long", "unseen", "unseen, long", "other"}
    asked = {answer.exchange.kind for answer in judged if answer.group == "held out"}
    assert asked >= set(KINDS) - {"other_clip", "ambiguous"}
    assert all(answer.given for answer in judged)
