"""Checks that the measurements of a soak do not grow: compares their last third with the one before it."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Sample = Mapping[str, float]
"""One sample: the values by the names of their series."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The growth that is allowed in a third of the time, which simulates 16 hours."""

    share: float
    """Relative to the level in the second third."""
    at_least: float
    """Absolute, for low levels."""

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
"""The allowances by the first words of a series' name.

Open files: a replica keeps the maximum number of Redis connections that it has needed, which can increase late. The
numbers of keys and files vary with the visits in progress; one leftover for each visit would double them.
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A series with its levels in the second and the last third, and the growth between them."""

    name: str
    before: float
    after: float
    growth: float
    is_level: bool


def judge(samples: Sequence[tuple[float, Sample]]) -> list[Verdict]:
    """Compare the last two thirds of the time for each series.

    Growth is the median of the slopes between all samples, times a third of the time, so that outliers have no effect.
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
