"""Sampling parameters of one answer; every field is finite and bounded. No torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

MAX_TOKENS = 8192
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
MAX_SEED = 2**63 - 1
MAX_LOGPROBS = 20
MAX_BEAMS = 16
BOUNDS: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 5.0),
    "top_k": (0, 1_000_000),
    "top_p": (1e-6, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.1, 10.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "max_tokens": (1, MAX_TOKENS),
    "seed": (0, MAX_SEED),
    "num_beams": (1, MAX_BEAMS),
    "length_penalty": (-5.0, 5.0),
}
"""The least and the greatest value of each field that is a number."""


class InvalidSampling(ValueError):
    """A sampling parameter is out of its bounds; `param` is its name."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the tokens of an answer are chosen. The defaults are greedy, without restrictions and penalties.

    Temperature 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0, `repetition_penalty` 1 and the other penalties at 0 are
    off. The penalties count tokens of the answer so far, not of the prompt. `min_p` drops tokens whose probability is
    less than `min_p` times that of the likeliest token. `logprobs` is the number of likeliest tokens reported with each
    token, besides its own log-probability; None reports no log-probabilities.

    Random numbers depend only on the seed and the position in the answer, so the same seed gives the same answer in any
    batch, and after it is resumed.

    Raises:
        InvalidSampling: a parameter is not finite or out of bounds.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = 256
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    num_beams: int = 1
    """More than one: beam search for the likeliest answer instead of sampling; no text is returned before the end."""
    length_penalty: float = 1.0
    """Beam search divides the log-probability of an answer by its length to this power."""
    ignore_eos: bool = False
    """Continue after an end-of-sequence token, up to `max_tokens`; for benchmarks."""

    def __post_init__(self) -> None:
        for param, (low, high) in BOUNDS.items():
            _check(param, getattr(self, param), low, high)
        if self.num_beams > 1 and (self.temperature > 0 or self.logprobs is not None):
            raise InvalidSampling("num_beams", "Beam search neither samples (temperature) nor gives logprobs.")
        if self.logprobs is not None:
            _check("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidSampling("stop", f"At most {MAX_STOP_STRINGS} stop strings are allowed.")
        if any(not 1 <= len(text) <= MAX_STOP_LENGTH for text in self.stop):
            raise InvalidSampling("stop", f"A stop string has 1 to {MAX_STOP_LENGTH} characters.")


def _check(param: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidSampling(param, f"{param} must be between {low} and {high}.")
