"""A sequence of tokens that the engine computes: prompt and answer so far, and how much of both is in the KV cache.

Torch appears in annotations only, so that the scheduler runs without it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from model.engine.output import FinishReason
    from model.engine.sampling_params import SamplingParams

Status = Literal["waiting", "running", "finished"]

ADDED = "added"
"""The tensor of a condition, [layers, heads, head_dim], that each layer adds to its attention, before `o_proj`."""


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A part of the prompt that is text: token ids."""

    token_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Number of positions it takes."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, eq=False)
class VideoSegment:
    """A part of the prompt that is video: `embeddings` [num_tokens, hidden], already projected.

    `identity` (fingerprint and content hash) identifies the contents: segments of equal identity have equal rows.
    """

    embeddings: torch.Tensor
    identity: str

    @property
    def num_tokens(self) -> int:
        """Number of positions it takes."""
        return int(self.embeddings.shape[0])


Segment = TextSegment | VideoSegment


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """Tensors that the layers use at every token of a sequence: added to attention (`ADDED`), or attended to.

    `tensors` has the names and shapes of `EngineConfig.condition_shapes`. `identity` identifies the contents:
    conditions of equal identity have equal tensors.
    """

    tensors: Mapping[str, torch.Tensor]
    identity: str


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """Prompt and answer of one request, or of one beam of a request, and its state in the scheduler.

    Once it is queued only the scheduler changes it. `max_output_tokens` is the length at which the answer ends:
    `max_tokens`, or less where `max_model_len` comes first.
    """

    request_id: str
    prompt: tuple[Segment, ...]
    params: SamplingParams
    max_output_tokens: int
    output_token_ids: list[int] = field(default_factory=list)
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    """Tokens whose keys and values are in the cache, or will be after the step that is scheduled."""
    num_cached_tokens: int = 0
    """Tokens whose keys and values were in the cache when the sequence began to run."""
    block_table: list[int] = field(default_factory=list)
    """The blocks that hold its keys and values, in the order of its positions."""
    status: Status = "waiting"
    finish_reason: FinishReason | None = None
    """Set when the sequence is to end; `status` becomes "finished" when the scheduler has removed it."""
    priority: int = 0
    """Sequences of higher priority are admitted first and preempted last."""
    arrival: int = 0
    """Its number in the order of arrival."""
    cache_salt: str = ""
    """Only sequences of equal salt share blocks."""
    condition: Condition | None = None
    """Only sequences of equal condition share blocks, because the keys and values of all tokens depend on it."""
    admitted_at: float | None = None
    """When it first began to run, by the monotonic clock."""
    _block_keys: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = sum(segment.num_tokens for segment in self.prompt)

    @property
    def rank(self) -> tuple[int, int]:
        """Sort key of the order in which sequences are served: by priority, then by arrival."""
        return -self.priority, self.arrival

    @property
    def num_tokens(self) -> int:
        """Tokens known so far, prompt and answer."""
        return self.num_prompt_tokens + len(self.output_token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens known but not yet computed: 1 in decode, more in prefill."""
        return self.num_tokens - self.num_computed_tokens

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, ...] | torch.Tensor]:
        """The contents of positions [start, end) in order: token ids, or rows [n, hidden] of a video."""
        first = 0
        for segment in self.prompt:
            low, high = max(start - first, 0), min(end - first, segment.num_tokens)
            if low < high:
                rows = segment.token_ids if isinstance(segment, TextSegment) else segment.embeddings
                yield rows[low:high]
            first += segment.num_tokens
        if end > first:
            yield tuple(self.output_token_ids[max(start - first, 0) : end - first])

    def fork(self) -> Sequence:
        """Another sequence of the same tokens, waiting, with no blocks."""
        return Sequence(
            request_id=self.request_id,
            prompt=self.prompt,
            params=self.params,
            max_output_tokens=self.max_output_tokens,
            output_token_ids=list(self.output_token_ids),
            priority=self.priority,
            arrival=self.arrival,
            cache_salt=self.cache_salt,
            condition=self.condition,
            admitted_at=self.admitted_at,
            _block_keys=list(self._block_keys),
        )

    def block_key(self, number: int, block_size: int) -> bytes:
        """Digest of all that a full block depends on: salt, condition, all token ids and video rows up to its end.

        Blocks of equal digest hold equal keys and values. `block_size` must be the same in all calls.
        """
        assert (number + 1) * block_size <= self.num_tokens, "all tokens of the block are known"
        while len(self._block_keys) <= number:
            start = len(self._block_keys) * block_size
            digest = hashlib.sha256(self._block_keys[-1] if self._block_keys else self._root())
            for content in self._contents(start, start + block_size):
                digest.update(len(content).to_bytes(8, "big") + content)
            self._block_keys.append(digest.digest())
        return self._block_keys[number]

    def _root(self) -> bytes:
        """Digest of what all blocks depend on."""
        identity = None if self.condition is None else self.condition.identity
        return hashlib.sha256(repr((self.cache_salt, identity)).encode()).digest()

    def _contents(self, start: int, end: int) -> Iterator[bytes]:
        """The contents of positions [start, end), whatever segments the text is divided into."""
        first, text = 0, array("q")
        for segment in (*self.prompt, TextSegment(tuple(self.output_token_ids))):
            low, high = max(start - first, 0), min(end - first, segment.num_tokens)
            first += segment.num_tokens
            if low >= high:
                continue
            if isinstance(segment, TextSegment):
                text.extend(segment.token_ids[low:high])
                continue
            if text:
                yield b"text" + text.tobytes()
                text = array("q")
            yield f"video {low} {high} {segment.identity}".encode()
        if text:
            yield b"text" + text.tobytes()

    def __repr__(self) -> str:
        return f"{self.request_id} {self.num_computed_tokens}/{self.num_tokens}"
