"""The model runner: computes all chunks of a step in one packed forward pass of transformers' own LLaMA."""

from collections.abc import Sequence as Ordered
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model.engine import attention
from model.engine.attention import AttentionPlan, Rows
from model.engine.conditions import ConditionTable, table_bytes
from model.engine.config import EngineConfig
from model.engine.kv_cache import KVCache, bytes_per_block, cache_dtype, free_bytes
from model.engine.packed_linear import is_plain, pack_linears
from model.engine.scheduler import Chunk, Schedule

if TYPE_CHECKING:
    from model.engine.decode_graphs import DecodeGraphs


class ModelRunner:
    """The language model and its KV cache; implements `model.engine.runner.Runner`.

    It changes the language model: attention reads the plan of a step, and on a CPU the linear layers are packed. A
    plain `generate` on the same object no longer works.
    """

    def __init__(self, language_model: LlamaForCausalLM) -> None:
        attention.register()
        language_model.set_attn_implementation(attention.IMPLEMENTATION)
        language_model.eval()
        self._is_plain = is_plain(language_model)
        self._dtype = torch.float32 if pack_linears(language_model) else language_model.dtype
        self._language_model = language_model
        self._device: torch.device = language_model.device
        self._cache_dtype = cache_dtype(language_model.dtype, self._device)
        self._kv_cache: KVCache | None = None
        self._block_size = 0
        self._is_paged = runs_paged(self._device)
        self._graphs: DecodeGraphs | None = None
        self._conditions: ConditionTable | None = None
        self.vocab_size: int = language_model.config.vocab_size
        self.hidden_size: int = language_model.config.hidden_size
        self.max_positions: int = language_model.config.max_position_embeddings
        self.half_speed_context: float = _half_speed_context(language_model.config)

    def num_fitting_blocks(self, config: EngineConfig) -> int:
        """How many blocks fit into the memory that is free now, beside the conditions of all sequences."""
        return num_fitting_blocks(
            free_bytes(self._device), config, self._language_model.config, dtype=self._cache_dtype
        )

    def allocate(self, config: EngineConfig) -> None:
        """Allocate the KV cache and the table of conditions; on a GPU, capture decode steps if `config` asks for it."""
        self._block_size = config.block_size
        self._kv_cache = KVCache(
            self._language_model.config,
            num_blocks=config.num_blocks + 1,  # one more, for the rows that pad a batch
            block_size=config.block_size,
            dtype=self._cache_dtype,
            device=self._device,
        )
        if config.condition_shapes:
            self._conditions = ConditionTable(config, dtype=self._cache_dtype, device=self._device)
        if self._is_paged and self._is_plain and config.cuda_graphs:
            from model.engine.decode_graphs import DecodeGraphs

            with torch.inference_mode():
                self._graphs = DecodeGraphs(
                    self._decode,
                    self._kv_cache,
                    block_size=config.block_size,
                    spare_block=config.num_blocks,
                    max_num_seqs=config.max_num_seqs,
                    max_blocks=config.blocks_for(config.max_model_len),
                    device=self._device,
                    conditions=self._conditions,
                )

    @torch.inference_mode()
    def run(self, schedule: Schedule) -> torch.Tensor:
        """Copy blocks, then compute chunks.

        Returns:
            Logits [n, vocab], float32: one row for each chunk that is `sampled`, in their order.
        """
        assert self._kv_cache is not None
        self._kv_cache.copy_blocks(schedule.copies)
        chunks = schedule.chunks
        if not chunks:
            return torch.empty(0, self.vocab_size)
        pack = _pack(chunks)
        condition_slots: list[int] = []
        if self._conditions is not None:
            condition_slots = self._conditions.slots_of([chunk.sequence.condition for chunk in chunks])
        if self._graphs is not None and (token_ids := _decode_tokens(chunks)) is not None:
            return self._graphs.run(pack, token_ids, condition_slots)
        last_rows = [rows.first + rows.num_rows - 1 for rows, chunk in zip(pack, chunks, strict=True) if chunk.sampled]
        positions = [position for chunk in chunks for position in range(chunk.start, chunk.end)]
        plan = self._plan(pack, self._kv_cache)
        if self._conditions is not None:
            pairs = zip(condition_slots, chunks, strict=True)
            plan = self._conditions.plan(
                plan, self._tensor([slot for slot, chunk in pairs for _ in range(chunk.num_tokens)])
            )
        return self._forward(self._embed(chunks), self._tensor(positions), plan, self._tensor(last_rows))

    def _decode(self, token_ids: torch.Tensor, positions: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """Logits [n, vocab] after tokens [n]. Can be captured: the values in the tensors do not change what runs."""
        embeds = self._language_model.get_input_embeddings()(token_ids).to(self._dtype)
        return self._forward(embeds, positions, plan, 0)

    def _forward(
        self, embeds: torch.Tensor, positions: torch.Tensor, plan: AttentionPlan, logits_to_keep: torch.Tensor | int
    ) -> torch.Tensor:
        """Logits [n, vocab], float32, of the rows to keep, from input embeddings [rows, hidden] at positions [rows]."""
        logits: torch.Tensor = self._language_model(
            inputs_embeds=embeds[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=logits_to_keep,  # 0 keeps all
            plan=plan,
        ).logits
        return logits[0].float()

    def _plan(self, pack: list[Rows], kv_cache: KVCache) -> AttentionPlan:
        if not self._is_paged:
            return attention.make_plan(pack, kv_cache, block_size=self._block_size, device=self._device)
        from model.engine import paged_attention

        config = self._language_model.config
        group = config.num_attention_heads // config.num_key_value_heads
        return paged_attention.make_plan(pack, kv_cache, block_size=self._block_size, group=group, device=self._device)

    def _embed(self, chunks: Ordered[Chunk]) -> torch.Tensor:
        """Input embeddings [rows, hidden]: one lookup for all token ids, then video rows are copied to their places."""
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


def num_fitting_blocks(budget: int, config: EngineConfig, llama: LlamaConfig, *, dtype: torch.dtype) -> int:
    """How many blocks fit into `budget` bytes, beside the conditions of all sequences; keys and values have `dtype`."""
    left = max(0, budget - table_bytes(config, dtype))
    return left // bytes_per_block(llama, block_size=config.block_size, dtype=dtype)


def runs_paged(device: torch.device) -> bool:
    """Whether attention uses the Triton kernel: on a GPU, if Triton is installed, as it is with torch for CUDA."""
    return device.type == "cuda" and find_spec("triton") is not None


def _half_speed_context(config: LlamaConfig) -> float:
    """How many tokens before a token double its work.

    The multiply-adds of the matrices of a layer, divided by those of its attention for each token before.
    """
    queries, keys = (num * config.head_dim for num in (config.num_attention_heads, config.num_key_value_heads))
    matrices = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    return float(matrices / (2 * queries))


def _decode_tokens(chunks: Ordered[Chunk]) -> list[int] | None:
    """The token of each chunk, if every chunk is one token of text after which a token is sampled; else None."""
    token_ids: list[int] = []
    for chunk in chunks:
        if chunk.num_tokens > 1 or not chunk.sampled:
            return None
        (piece,) = chunk.sequence.pieces(chunk.start, chunk.end)
        if isinstance(piece, torch.Tensor):
            return None
        token_ids += piece
    return token_ids


def _pack(chunks: Ordered[Chunk]) -> list[Rows]:
    """The rows of the pack that each chunk takes, one chunk after the other."""
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
