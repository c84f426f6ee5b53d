"""The engine's output for one request in one step. No torch: outputs may be used by processes without it."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Logprobs:
    """Log-probabilities (natural) of a token, and of the likeliest tokens at its position."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """What one step adds to one answer.

    `text` is the text that is final now. It is often empty, because incomplete characters and possible beginnings of
    stop strings are held back. `token_ids` are the sampled tokens, the end-of-sequence token included. Text and token
    ids of all outputs so far are all that another engine needs to resume the answer.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    num_prompt_tokens: int
    num_cached_tokens: int
    """Tokens of the prompt, and of an answer that is resumed, that were already in the KV cache."""
    num_output_tokens: int
    running_seconds: float
    """Time since the request was first admitted to the batch; 0 if it has not been."""
    logprobs: tuple[Logprobs, ...] = ()
    """One for each of `token_ids`, if the request asks for them."""
