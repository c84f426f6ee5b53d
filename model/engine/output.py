"""What a step tells of one request. No torch: it may cross into processes that have none."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Logprobs:
    """How likely a token was, and which were the likeliest in its place: natural logarithms."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """What one step added to one answer.

    `text` is what may leave now: often nothing, since half characters and beginnings of stop strings are held
    back. `token_ids` is what was sampled, the end-of-sequence token included. Kept together, text and ids are
    all that is needed to go on after this output in another engine.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    num_prompt_tokens: int
    num_cached_tokens: int
    """Tokens of the prompt, and of an answer that went on, that the KV cache already had."""
    num_output_tokens: int
    running_seconds: float
    """Since the request got a place in the batch; 0 if it has had none."""
    logprobs: tuple[Logprobs, ...] = ()
    """One for each of `token_ids`, where the request asked for them."""
