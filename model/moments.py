"""Moments that an answer names on a model's time axis, as seconds of the clip. No torch.

A model with a time axis writes positions on the axis instead of seconds: VTimeLLM's 100 frames are the positions 00 to
99, and its answers say "from 17 to 34" (https://github.com/huangb23/VTimeLLM, `vtimellm/eval/eval.py`).
"""

import re
from dataclasses import dataclass
from typing import Self

# Words after a pair of numbers that show that the numbers do not count a noun, as they do in "10 to 15 people".
_CONTINUATIONS = "a|an|and|are|as|at|but|he|in|is|it|or|she|the|then|they|was|were|when|where|while|with"
_UNITS = "seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?|percent|times?|degrees?"


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeAxis:
    """`num_positions` equal parts of a clip's interval, numbered from 0.

    Raises:
        ValueError: no position, or an interval that ends before it starts.
    """

    num_positions: int
    start: float
    """Seconds of the clip at which the sampled interval starts."""
    end: float

    def __post_init__(self) -> None:
        if self.num_positions < 1:
            raise ValueError(f"num_positions must be at least 1, not {self.num_positions}.")
        if not 0 <= self.start <= self.end:
            raise ValueError(f"The interval from {self.start} to {self.end} s is not valid.")

    @classmethod
    def over(cls, num_positions: int, *, duration: float, start: float | None, end: float | None) -> Self:
        """The axis over the part of a clip that a frame spec samples; `duration` is the clip's, in seconds."""
        last = duration if end is None else min(end, duration)
        return cls(num_positions=num_positions, start=min(start or 0.0, last), end=last)

    def seconds(self, first: int, last: int) -> tuple[float, float]:
        """The start and end, in seconds of the clip, of the positions `first` to `last`.

        The last position counts as a whole, `end = (last + 1) * duration / num_positions`. This is the rule of
        VTimeLLM's score for captions; its score for grounding ends at `last * duration / num_positions`, by which "from
        17 to 17" would have no length.
        """
        duration = self.end - self.start
        start = self.start + first * duration / self.num_positions
        end = self.start + (last + 1) * duration / self.num_positions
        return min(start, self.end), min(end, self.end)


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A stretch of a clip that an answer names: where its text is, in characters, and its seconds of the clip."""

    text_start: int
    text_end: int
    start: float
    end: float


def find_moments(text: str, axis: TimeAxis) -> tuple[Moment, ...]:
    """Find the stretches that an answer names, in the order of the text.

    A stretch is `from 17 to 34`, `between 17 and 34`, `17 to 34` or `17 and 34`, in plain text or in the JSON that
    VTimeLLM writes for dense captions, `[{"event": "…", "timestamps": "from 17 to 34"}]`. Both numbers have all digits
    of the axis (two for 100 positions), are positions of the axis, and do not decrease; other numbers are not moments.

    Whether two such numbers count things cannot be known in general. The rule: a pair after `from`, `between`, `during`
    or `frames` is a moment, unless a unit follows it ("from 10 to 15 years"). Any other pair is a moment only if no
    word that it could count follows: at the end of its clause or sentence, or before a word such as `and` or `while`.
    "10 to 15 people" is therefore no moment, and "17 to 34." is one.
    """
    moments = []
    for match in _pattern(len(str(axis.num_positions - 1))).finditer(text):
        first, last = int(match["first"]), int(match["last"])
        if first <= last < axis.num_positions:
            start, end = axis.seconds(first, last)
            moments.append(Moment(text_start=match.start(), text_end=match.end(), start=start, end=end))
    return tuple(moments)


def _pattern(num_digits: int) -> re.Pattern[str]:
    """The pattern of a stretch whose positions have `num_digits` digits."""
    number = f"[0-9]{{{num_digits}}}"
    before = r"(?<![\w$#])(?<![0-9][.,:/-])"
    after = r"(?![\w%°]|[.,:/-][0-9])"
    no_unit = rf"(?![ -](?:{_UNITS})\b)"
    no_noun = rf"(?![ -](?!(?:{_CONTINUATIONS})\b)\w)"
    return re.compile(
        rf"{before}(?P<cue>(?:from|between|during|frames) )?(?P<first>{number}) (?:to|and) (?P<last>{number}){after}"
        rf"{no_unit}(?(cue)|{no_noun})",
        re.IGNORECASE,
    )
