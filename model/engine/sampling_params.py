"""How the tokens of one answer are chosen. Every field is finite and bounded; no torch here."""

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
    """A sampling field is out of its bounds; `param` names it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Temperature 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0 and the penalties 1, 0 and 0 are off.

    The penalties look at what the answer has said so far, not at the prompt. `min_p` drops tokens that are less than
    so many times as likely as the likeliest. With `logprobs` every token comes with the logarithm of its probability
    and with as many of the likeliest; None is without.

    Random numbers are keyed by (seed, position), so neither batch mates nor a resumption change a token.

    Raises:
        InvalidSampling: a field is not finite or out of bounds.
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
    """More than one searches for the likeliest answer instead of sampling: nothing is said before the end."""
    length_penalty: float = 1.0
    """The power of an answer's length by which beam search divides its log-probability."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token, up to `max_tokens`: for measuring."""

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
