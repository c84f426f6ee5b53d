"""Runs one step's chunks through the language model, packed in one forward pass. Chunks in, logits out."""

from collections.abc import Sequence as Ordered

import torch
from transformers import LlamaForCausalLM

from model.engine.attention import IMPLEMENTATION, AttentionPlan, Span, causal_mask, register
from model.engine.kv_cache import KVCache
from model.engine.scheduler import Chunk


class ModelRunner:
    """The language model and the KV cache of what it runs.

    From here on the model attends by our plan, so a plain `generate` on the same object no longer works.
    """

    def __init__(self, language_model: LlamaForCausalLM) -> None:
        register()
        language_model.set_attn_implementation(IMPLEMENTATION)
        language_model.eval()
        self._language_model = language_model
        self._device: torch.device = language_model.device
        self._kv_cache = KVCache(
            num_layers=language_model.config.num_hidden_layers,
            num_kv_heads=language_model.config.num_key_value_heads,
            head_dim=language_model.config.head_dim,
            dtype=language_model.dtype,
            device=self._device,
        )

    @property
    def num_cached_sequences(self) -> int:
        """Sequences that hold room in the KV cache."""
        return self._kv_cache.num_sequences

    @torch.inference_mode()
    def run(self, chunks: Ordered[Chunk]) -> torch.Tensor:
        """Compute the chunks.

        Returns:
            Logits [num_seqs, vocab], float32: a row for each chunk that is `sampled`, in their order.
        """
        if not chunks:
            return torch.empty(0, self._language_model.config.vocab_size)
        for chunk in chunks:
            self._kv_cache.allocate(chunk.sequence.request_id, chunk.end)
        positions = [position for chunk in chunks for position in range(chunk.start, chunk.end)]
        logits: torch.Tensor = self._language_model(
            inputs_embeds=self._embed(chunks)[None],  # [1, rows, hidden]
            position_ids=self._tensor(positions)[None],  # [1, rows]
            use_cache=False,
            logits_to_keep=self._tensor(_sampled_rows(chunks)),
            plan=AttentionPlan(self._spans(chunks), self._kv_cache),
        ).logits
        return logits[0].float()

    def free(self, request_id: str) -> None:
        """Give back the cache of a sequence that has ended."""
        self._kv_cache.free(request_id)

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
        embeds: torch.Tensor = self._language_model.get_input_embeddings()(self._tensor(token_ids))
        for row, rows in videos:
            embeds[row : row + len(rows)] = rows.to(device=embeds.device, dtype=embeds.dtype)
        return embeds

    def _spans(self, chunks: Ordered[Chunk]) -> tuple[Span, ...]:
        spans, row = [], 0
        for chunk in chunks:
            mask = causal_mask(chunk.start, chunk.num_tokens, self._device)
            spans.append(
                Span(
                    request_id=chunk.sequence.request_id,
                    row=row,
                    num_rows=chunk.num_tokens,
                    start=chunk.start,
                    mask=mask,
                )
            )
            row += chunk.num_tokens
        return tuple(spans)

    def _tensor(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._device)


def _sampled_rows(chunks: Ordered[Chunk]) -> list[int]:
    """The last row of every chunk whose logits are wanted."""
    rows, row = [], 0
    for chunk in chunks:
        row += chunk.num_tokens
        if chunk.sampled:
            rows.append(row - 1)
    return rows
