"""The engine's configuration, and the errors that refuse a request.

No torch: the length of a prompt can be checked before any video is encoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


class PromptTooLong(ValueError):
    """The prompt is so long that not one token of an answer fits."""

    def __init__(self, *, num_prompt_tokens: int, max_model_len: int) -> None:
        super().__init__(
            f"The prompt has {num_prompt_tokens} tokens, but at most {max_model_len - 1} fit"
            f" (max_model_len is {max_model_len}, and the answer needs one)."
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_model_len = max_model_len


class InvalidPrompt(ValueError):
    """The prompt is empty, or has token ids, video rows or a condition that the language model does not accept."""


class DuplicateRequest(ValueError):
    """The engine has an unfinished request of this id."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"A request with the id {request_id!r} is already in the engine.")
        self.request_id = request_id


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """The engine's limits.

    At most `max_num_seqs` sequences run together. Prompt and answer of one sequence have at most `max_model_len` tokens
    together. A step computes at most `max_num_batched_tokens` tokens: decode first, then prefill. While any sequence
    decodes, a step prefills at most `max_prefill_beside_decode` tokens, and fewer the more tokens come before them, so
    that no stream waits long for its next token.

    Keys and values are kept in `num_blocks` blocks of `block_size` tokens. With 0 the engine chooses the number: what
    `max_num_seqs` of the longest sequences need, or less if memory is short. With `prefix_caching` a sequence shares
    the blocks of another one that begins with the same tokens. With `cuda_graphs`, on a GPU, steps that only decode are
    captured when the engine is made.

    `condition_shapes` has the tensors of a condition, by name; a model without conditions has none.

    Raises:
        ValueError: a limit is too small, a step could not decode every running sequence, or the longest sequence does
            not fit into the blocks.
    """

    max_num_seqs: int = 32
    max_model_len: int = 2048
    max_num_batched_tokens: int = 2048
    max_prefill_beside_decode: int = 512
    block_size: int = 16
    num_blocks: int = 0
    prefix_caching: bool = True
    cuda_graphs: bool = True
    condition_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise ValueError("max_num_seqs must be at least 1.")
        if self.max_model_len < 2:
            raise ValueError("max_model_len must be at least 2: a token of prompt and one of answer.")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs, a token each.")
        if self.block_size < 1 or self.max_prefill_beside_decode < 1:
            raise ValueError("block_size and max_prefill_beside_decode must be at least 1.")
        if self.num_blocks and self.num_blocks < self.blocks_for(self.max_model_len):
            raise ValueError(
                f"A sequence of {self.max_model_len} tokens takes {self.blocks_for(self.max_model_len)} blocks, but"
                f" there are {self.num_blocks}."
            )

    def blocks_for(self, num_tokens: int) -> int:
        """Number of blocks that so many tokens of one sequence take."""
        return -(-num_tokens // self.block_size)

    @property
    def max_useful_blocks(self) -> int:
        """Number of blocks that `max_num_seqs` of the longest sequences take; more are never in use."""
        return self.max_num_seqs * self.blocks_for(self.max_model_len)


def check_length(num_prompt_tokens: int, config: EngineConfig) -> None:
    """Refuse a prompt that is too long; needs only its length, so that no video is encoded for nothing.

    Raises:
        PromptTooLong: the prompt and one token of answer exceed `max_model_len`.
    """
    if num_prompt_tokens + 1 > config.max_model_len:
        raise PromptTooLong(num_prompt_tokens=num_prompt_tokens, max_model_len=config.max_model_len)
