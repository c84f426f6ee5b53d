"""The checks of a soak find leaks, and a short soak of a hundred visits leaves nothing behind."""

import math
import random
from pathlib import Path

import pytest

from tests.e2e.fleet import NGINX
from tests.e2e.level import judge
from tests.e2e.soak import Soak, soaked_fleet
from tests.e2e.storm_report import KINDS, Report, growth, mistakes, peaks_by_half
from tests.e2e.usage import Usage

MB = 1e6


def grows(name: str, *values: float) -> bool:
    """Whether a soak with these samples, two seconds apart, fails."""
    [verdict] = judge([(2.0 * number, {name: value}) for number, value in enumerate(values, start=1)])
    return not verdict.is_level


def test_constant_series_pass_and_leaks_fail() -> None:
    rng = random.Random(4)
    noisy = [100 * MB + rng.gauss(0, 2 * MB) for _ in range(300)]
    warming = [100 * MB - 40 * MB * math.exp(-number / 20) for number in range(300)]
    for level in (noisy, warming, [100 * MB] * 299 + [900 * MB]):
        assert not grows("memory of api a", *level)
    leak = 4 * MB / 100  # for each sample: 4 MB in a third of the time
    assert grows("memory of api a", *(value + leak * number for number, value in enumerate(noisy)))
    assert grows("memory of api a", *(value + leak * number for number, value in enumerate(warming)))


def test_a_leftover_of_every_tenth_visit_is_found_among_keys_and_files() -> None:
    going_on = [20 + 5 * math.sin(number / 7) for number in range(300)]
    leftovers = [0.4 * number for number in range(300)]  # at two visits per second
    for name in ("keys of answer:*", "disk files of media", "files of api a"):
        assert not grows(name, *going_on)
        assert grows(name, *map(sum, zip(going_on, leftovers, strict=True)))


def test_a_series_that_appears_late_is_found() -> None:
    assert grows("keys of nothing:*", *[0.0] * 120, *(float(number) for number in range(180)))


def test_the_memory_of_a_storm_is_compared_by_the_half_in_which_processes_start() -> None:
    def life(part: str, pid: int, begin: float, *peaks: int) -> list[Usage]:
        return [
            Usage(seconds=begin + second, part=part, pid=pid, parent=1, num_bytes=0, peak_bytes=peak, num_files=9)
            for second, peak in enumerate(peaks)
        ]

    usages = life("api", 1, 0, 80, 90, 95) + life("api", 2, 9, 80, 90) + life("api", 3, 10, 70, 111)
    assert peaks_by_half(usages) == {"api": ([95], [90, 111])}
    report = Report(seed=1, num_clients=1, peak_mb={"api": (95, 111), "worker": (400, 420), "decode": (90, 90)})
    [problem] = growth(report)
    assert problem.startswith("api")
    assert set(report.kills) == set(KINDS)


@pytest.mark.skipif(not NGINX, reason="nginx is not installed")
@pytest.mark.timeout(300)
def test_nothing_is_left_after_many_visits_are_deleted(tmp_path: Path) -> None:
    with soaked_fleet(tmp_path) as fleet:
        soak = Soak(fleet, num_visitors=6, seed=2)
        report = soak.run(20)
    assert report.problems == []
    assert sum(report.visits.values()) >= 30
    assert soak.samples


def test_a_storm_finds_internal_errors_in_the_log() -> None:
    traced = ["2026-01-01T00:00:00Z [error] request_failed path=/\n", "Traceback\n", "ValueError: no\n", "\n"]
    others = [
        "2026-01-01T00:00:01Z [info] ready\n",
        "2026-01-01T00:00:02Z [error] Task exception was never retrieved\n",
    ]
    assert mistakes([*others[:1], *traced, *others]) == [traced[0] + traced[2], others[1]]
