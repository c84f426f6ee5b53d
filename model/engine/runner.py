"""What the engine asks of whatever runs a language model: chunks in, logits out, blocks copied."""

from collections.abc import Sequence as Ordered
from typing import Protocol

import torch

from model.engine.config import EngineConfig
from model.engine.scheduler import Chunk


class Runner(Protocol):
    """A language model and the blocks that hold its keys and values.

    The scheduler says which blocks a chunk's sequence holds, and never frees one that is in use; what a free block
    holds is of no meaning. Within a step all chunks are written before any is looked at: one may use blocks that
    another fills in the same step.
    """

    vocab_size: int
    hidden_size: int
    max_positions: int
    half_speed_context: float
    """Tokens before a token of a prompt at which that takes twice the time of the first."""

    def allocate(self, config: EngineConfig) -> None:
        """Make room for its blocks, of which the number is set; called once, before anything runs."""

    def most_blocks(self, block_size: int) -> int:
        """Blocks for which there is memory now."""

    def run(self, chunks: Ordered[Chunk]) -> torch.Tensor:
        """Logits [n, vocab_size], float32: a row for each chunk that is `sampled`, in their order."""

    def copy_blocks(self, pairs: Ordered[tuple[int, int]]) -> None:
        """Copy what blocks hold, each pair from the first to the second."""
