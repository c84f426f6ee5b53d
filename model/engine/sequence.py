"""One request on its way through the engine: its prompt, its answer so far, and how much of both is computed.

Torch appears in annotations only, so that the scheduler runs without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from model.engine.output import FinishReason
    from model.engine.sampling_params import SamplingParams

Status = Literal["waiting", "running", "finished"]


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A stretch of the prompt in token ids."""

    token_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """How many positions it takes."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, eq=False)
class VideoSegment:
    """A stretch of the prompt in video tokens: `embeddings` [num_tokens, hidden], already projected.

    `identity` names their content (fingerprint and content hash): equal identity, equal rows.
    """

    embeddings: torch.Tensor
    identity: str

    @property
    def num_tokens(self) -> int:
        """How many positions it takes."""
        return int(self.embeddings.shape[0])


Segment = TextSegment | VideoSegment


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """Prompt and answer of one request. `finish_reason` is set the moment it ends, `status` when it has left.

    `max_output_tokens` is where "length" ends it: `max_tokens`, or less where `max_model_len` comes first.
    """

    request_id: str
    prompt: tuple[Segment, ...]
    params: SamplingParams
    max_output_tokens: int
    output_token_ids: list[int] = field(default_factory=list)
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    status: Status = "waiting"
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.num_prompt_tokens = sum(segment.num_tokens for segment in self.prompt)

    @property
    def num_tokens(self) -> int:
        """Tokens known so far, prompt and answer."""
        return self.num_prompt_tokens + len(self.output_token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens known but not yet through the network: 1 in decode, more in prefill."""
        return self.num_tokens - self.num_computed_tokens

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, ...] | torch.Tensor]:
        """Positions [start, end) in order: token ids, or rows [n, hidden] of a video."""
        first = 0
        for segment in self.prompt:
            low, high = max(start - first, 0), min(end - first, segment.num_tokens)
            if low < high:
                rows = segment.token_ids if isinstance(segment, TextSegment) else segment.embeddings
                yield rows[low:high]
            first += segment.num_tokens
        if end > first:
            yield tuple(self.output_token_ids[max(start - first, 0) : end - first])

    def __repr__(self) -> str:
        return f"{self.request_id} {self.num_computed_tokens}/{self.num_tokens}"
