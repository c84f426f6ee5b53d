"""The interface between the engine and the code that runs a language model: a schedule in, logits out."""

from typing import Protocol

import torch

from model.engine.config import EngineConfig
from model.engine.scheduler import Schedule


class Runner(Protocol):
    """A language model, and the blocks that hold its keys and values.

    The scheduler decides which blocks the sequence of a chunk holds, and never frees a block that is in use. The
    contents of free blocks may be overwritten. Within a step the blocks are copied first; then, in every layer, the
    keys and values of all chunks are written before any is read, so a chunk may read blocks that another chunk fills in
    the same step.
    """

    vocab_size: int
    hidden_size: int
    max_positions: int
    half_speed_context: float
    """With so many tokens before it, a token of a prompt takes twice the time of the first one."""

    def num_fitting_blocks(self, config: EngineConfig) -> int:
        """How many blocks fit into the memory that is free now, beside the conditions of all sequences."""

    def allocate(self, config: EngineConfig) -> None:
        """Allocate `config.num_blocks` blocks; called once, before `run`."""

    def run(self, schedule: Schedule) -> torch.Tensor:
        """Copy blocks, then compute chunks.

        Returns:
            Logits [n, vocab_size], float32: one row for each chunk that is `sampled`, in their order.
        """
