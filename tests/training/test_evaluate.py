"""The evaluation counts what is right, and nothing else."""

from pathlib import Path

import pytest

from model.families import load_family
from training.clips import ENCODERS, SIDES
from training.dialogues import KINDS, Exchange
from training.evaluate import UNSEEN_FORMATS, Plan, Verdict, _path, evaluate, interval, summary
from training.world import FPS

COLOUR = Exchange(kind="colour", question="What colour is it?", answer="The star is red.")


def test_shares_come_with_wilson_s_interval() -> None:
    assert interval(95, 100) == pytest.approx((0.8882, 0.9785), abs=1e-3)
    low, high = interval(20, 20)
    assert 0.83 < low < 0.85
    assert high == pytest.approx(1)
    assert interval(0, 0) == (0.0, 1.0)


def test_only_the_right_answer_counts() -> None:
    said = ("The star is red.", "The star is blue.", "the star is red")
    found = summary(Verdict(group="held out", exchange=COLOUR, said=text) for text in said)
    assert found["held out"]["colour"]["right"] == found["held out"]["all"]["right"] == 1
    assert found["held out"]["all"]["share"] == pytest.approx(1 / 3, abs=1e-4)


def test_unseen_formats_are_none_of_the_world_s() -> None:
    for codec, width, height, fps in UNSEEN_FORMATS:
        assert codec in ENCODERS.keys() - {"h264", "vp9", "mpeg4"}
        assert fps not in FPS
        assert not all(SIDES[0] <= side <= SIDES[1] for side in (width, height))


def test_every_group_and_kind_is_asked_about_through_real_files(tmp_path: Path) -> None:
    groups = {"held out": 3, "unseen": 1, "other": 1}
    plans = [
        Plan(group=group, number=number, path=_path(tmp_path, group, number, 5), seed=5)
        for group, count in groups.items()
        for number in range(count)
    ]
    verdicts = evaluate(load_family("videochat"), plans)
    assert {verdict.group for verdict in verdicts} == {"held out", "held out, long", "unseen", "unseen, long", "other"}
    asked = {verdict.exchange.kind for verdict in verdicts if verdict.group == "held out"}
    assert asked >= set(KINDS) - {"other_clip", "ambiguous"}
    assert all(verdict.said for verdict in verdicts)
