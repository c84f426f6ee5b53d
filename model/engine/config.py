"""The engine's bounds, and the errors a request may meet at its door.

No torch: a prompt can be refused before any feature exists.
"""

from dataclasses import dataclass


class PromptTooLong(ValueError):
    """The prompt leaves no room for one token of an answer."""

    def __init__(self, *, num_prompt_tokens: int, max_model_len: int) -> None:
        super().__init__(
            f"The prompt has {num_prompt_tokens} tokens, but at most {max_model_len - 1} fit"
            f" (max_model_len is {max_model_len}, and the answer needs one)."
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_model_len = max_model_len


class InvalidPrompt(ValueError):
    """The prompt is empty, or names tokens or video rows that the language model cannot take."""


class DuplicateRequest(ValueError):
    """A request of this id is still in the engine."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"A request with the id {request_id!r} is already in the engine.")
        self.request_id = request_id


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """How much the engine takes on at once.

    `max_num_seqs` sequences run together; prompt and answer of one have at most `max_model_len` tokens; a
    step feeds the network at most `max_num_batched_tokens`, decode first and prefill with the rest, but no more than
    `max_prefill_beside_decode` of it while anybody decodes, so that no stream waits long for its next token: fewer, the
    more tokens those look back on.

    Keys and values lie in `num_blocks` blocks of `block_size` tokens; 0 leaves the number to the engine, which takes
    what `max_num_seqs` of the longest sequences need, or less where memory is short. With `prefix_caching` a
    sequence uses the blocks of another that began in the same way. With `cuda_graphs` steps that only decode are
    captured when the engine is made, where it runs on a GPU.

    Raises:
        ValueError: a bound is too small, a step could not decode every running sequence, or the longest sequence does
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
        """Blocks that so many tokens take."""
        return -(-num_tokens // self.block_size)

    @property
    def most_blocks(self) -> int:
        """Blocks for as many of the longest sequences as may run."""
        return self.max_num_seqs * self.blocks_for(self.max_model_len)


def check_length(num_prompt_tokens: int, config: EngineConfig) -> None:
    """Refuse a prompt by its length alone; needs no features, so that no video is encoded in vain.

    Raises:
        PromptTooLong: prompt and one token of answer exceed `max_model_len`.
    """
    if num_prompt_tokens + 1 > config.max_model_len:
        raise PromptTooLong(num_prompt_tokens=num_prompt_tokens, max_model_len=config.max_model_len)
