"""Attention over a pack of sequences, each against its own cache, in the form that transformers calls.

Holds no state: the plan of the step comes in as an argument of the forward pass.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from model.engine.kv_cache import KVCache

IMPLEMENTATION = "reeltalk"
"""Its name in transformers' registry. The mask registry does not know it, so no mask is built."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Span:
    """Where one chunk lies: rows [row, row + num_rows) of the pack, positions from `start` on.

    `mask` [num_rows, start + num_rows] is True where a row may look; None where causality is plain.
    """

    request_id: str
    row: int
    num_rows: int
    start: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPlan:
    """All that attention needs to know of one step."""

    spans: tuple[Span, ...]
    kv_cache: KVCache


def register() -> None:
    """Make the implementation known to transformers; again is no harm."""
    AttentionInterface.register(IMPLEMENTATION, attend)


def causal_mask(start: int, num_rows: int, device: torch.device) -> torch.Tensor | None:
    """Which positions [num_rows, start + num_rows] each of the last rows may see; None where it is plain."""
    if num_rows == 1 or start == 0:
        return None
    return torch.ones(num_rows, start + num_rows, dtype=torch.bool, device=device).tril(diagonal=start)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: AttentionPlan,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Write the step's keys and values to the caches and attend, sequence by sequence.

    Args:
        module: the attention layer that calls; its `layer_idx` says which part of the cache is meant.
        query: [1, num_heads, rows, head_dim], positions already rotated in.
        key: [1, num_kv_heads, rows, head_dim], likewise.
        value: [1, num_kv_heads, rows, head_dim].
        attention_mask: none, since the pack is no batch that a mask could describe.
        plan: what lies where in `rows`.
        scaling: of the scores.

    Returns:
        [1, rows, num_heads, head_dim], and no weights.
    """
    assert attention_mask is None
    layer = module.layer_idx
    assert isinstance(layer, int)
    output = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    for span in plan.spans:
        rows = slice(span.row, span.row + span.num_rows)
        keys, values = plan.kv_cache.append(
            span.request_id, layer, keys=key[0, :, rows], values=value[0, :, rows], start=span.start
        )
        attended = scaled_dot_product_attention(
            query[:, :, rows],
            keys[None],
            values[None],
            attn_mask=span.mask,
            is_causal=span.start == 0 and span.num_rows > 1,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        output[:, rows] = attended.transpose(1, 2)
    return output, None
