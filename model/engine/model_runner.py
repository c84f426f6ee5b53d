"""Runs one step's chunks through transformers' own LLaMA, packed in one forward pass. Chunks in, logits out."""

from collections.abc import Sequence as Ordered

import torch
from transformers import LlamaForCausalLM

from model.engine.attention import IMPLEMENTATION, Rows, make_plan, register
from model.engine.kv_cache import KVCache, bytes_per_block, cache_dtype, free_bytes
from model.engine.packed_linear import pack_linears
from model.engine.scheduler import Chunk


class ModelRunner:
    """The language model and the KV cache of what it runs; implements `model.engine.runner.Runner`.

    From here on the model attends by our plan, and on a CPU its linear layers are laid out anew, so a plain
    `generate` on the same object no longer works.
    """

    def __init__(self, language_model: LlamaForCausalLM) -> None:
        register()
        language_model.set_attn_implementation(IMPLEMENTATION)
        language_model.eval()
        self._dtype = torch.float32 if pack_linears(language_model) else language_model.dtype
        self._language_model = language_model
        self._device: torch.device = language_model.device
        self._cache_dtype = cache_dtype(language_model.dtype, self._device)
        self._kv_cache: KVCache | None = None
        self._block_size = 0
        self.vocab_size: int = language_model.config.vocab_size
        self.hidden_size: int = language_model.config.hidden_size
        self.max_positions: int = language_model.config.max_position_embeddings

    def most_blocks(self, block_size: int) -> int:
        """Blocks for which there is memory now."""
        config = self._language_model.config
        return free_bytes(self._device) // bytes_per_block(config, block_size=block_size, dtype=self._cache_dtype)

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Make room for so many blocks."""
        self._block_size = block_size
        self._kv_cache = KVCache(
            self._language_model.config,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=self._cache_dtype,
            device=self._device,
        )

    def copy_blocks(self, pairs: Ordered[tuple[int, int]]) -> None:
        """Copy what blocks hold, each pair from the first to the second."""
        assert self._kv_cache is not None
        self._kv_cache.copy_blocks(pairs)

    @torch.inference_mode()
    def run(self, chunks: Ordered[Chunk]) -> torch.Tensor:
        """Compute the chunks.

        Returns:
            Logits [num_seqs, vocab], float32: a row for each chunk that is `sampled`, in their order.
        """
        assert self._kv_cache is not None
        if not chunks:
            return torch.empty(0, self.vocab_size)
        pack = _pack(chunks)
        last_rows = [rows.first + rows.num_rows - 1 for rows, chunk in zip(pack, chunks, strict=True) if chunk.sampled]
        positions = [position for chunk in chunks for position in range(chunk.start, chunk.end)]
        logits: torch.Tensor = self._language_model(
            inputs_embeds=self._embed(chunks)[None],  # [1, rows, hidden]
            position_ids=self._tensor(positions)[None],  # [1, rows]
            use_cache=False,
            logits_to_keep=self._tensor(last_rows),
            plan=make_plan(pack, self._kv_cache, block_size=self._block_size, device=self._device),
        ).logits
        return logits[0].float()

    def _embed(self, chunks: Ordered[Chunk]) -> torch.Tensor:
        """Input embeddings [rows, hidden]: text looked up in one go, video tokens laid over their places."""
        token_ids: list[int] = []
        videos: list[tuple[int, torch.Tensor]] = []
        for chunk in chunks:
            for piece in chunk.sequence.pieces(chunk.start, chunk.end):
                if isinstance(piece, torch.Tensor):
                    videos.append((len(token_ids), piece))
                    token_ids.extend([0] * len(piece))
                else:
                    token_ids.extend(piece)
        embeds: torch.Tensor = self._language_model.get_input_embeddings()(self._tensor(token_ids)).to(self._dtype)
        for row, rows in videos:
            embeds[row : row + len(rows)] = rows.to(device=embeds.device, dtype=embeds.dtype)
        return embeds

    def _tensor(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._device)


def _pack(chunks: Ordered[Chunk]) -> list[Rows]:
    """The chunks one after the other."""
    pack, first = [], 0
    for chunk in chunks:
        pack.append(
            Rows(
                first=first,
                num_rows=chunk.num_tokens,
                start=chunk.start,
                blocks=chunk.sequence.block_table,
                num_shared=chunk.num_shared_blocks,
            )
        )
        first += chunk.num_tokens
    return pack
