"""Whether what a soak looked at stayed level: every series' last third of the time against the one before it."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Sample = Mapping[str, float]
"""What was there at one look, by the names of the series."""


@dataclass(frozen=True, slots=True)
class Bound:
    """How much a series may grow in a third of the time, which stands for 16 hours."""

    share: float
    """Of its level in the second third."""
    at_least: float
    """However low that level is."""

    def allows(self, level: float, growth: float) -> bool:
        return growth <= max(self.share * level, self.at_least)


MB = 1e6
_BOUNDS = {
    "memory": Bound(0.02, 3 * MB),
    "files": Bound(0.10, 10),
    "keys": Bound(0.15, 8),
    "redis memory": Bound(0.10, 1 * MB),
    "disk bytes": Bound(0.15, 2 * MB),
    "disk files": Bound(0.15, 8),
    "series": Bound(0.02, 2),
}
"""By the first words of a series' name.

Open files: a replica keeps as many connections to Redis as it ever needed at once, and that creeps up with luck. Keys
and files on disk scatter with the visits that are going on; a thing left by each visit would double these numbers.
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One series, its level in the second third and in the last, and by how much it grew from one to the other."""

    name: str
    before: float
    after: float
    growth: float
    is_level: bool


def judge(samples: Sequence[tuple[float, Sample]]) -> list[Verdict]:
    """Compare the last two thirds of the time, series by series.

    Growth is the median of the slopes between all samples, times a third: no single sample moves it.
    """
    third = samples[-1][0] / 3
    verdicts = []
    for name in sorted({name for _, sample in samples for name in sample}):
        points = [(seconds, sample.get(name, 0.0)) for seconds, sample in samples if seconds >= third]
        before = statistics.median(value for seconds, value in points if seconds < 2 * third)
        after = statistics.median(value for seconds, value in points if seconds >= 2 * third)
        growth = third * _slope(points)
        bound = next(bound for start, bound in _BOUNDS.items() if f"{name} ".startswith(start + " "))
        verdicts.append(Verdict(name, before, after, growth, bound.allows(before, growth)))
    return verdicts


def _slope(points: Sequence[tuple[float, float]]) -> float:
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2))
