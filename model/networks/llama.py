"""The LLaMA decoder that every family uses: its sizes, transformers' module for them, its rotary frequencies."""

from dataclasses import dataclass

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from model.networks.sizes import check_eps, check_sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Sizes of the LLaMA decoder; `vocab_size` counts embedding rows, which may exceed the tokenizer's pieces.

    Raises:
        ValueError: a size is impossible.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    max_positions: int = 2048
    rms_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_sizes(self)
        check_eps("rms_eps", self.rms_eps)
        if self.width // self.num_heads % 2:
            raise ValueError(f"{self.num_heads} heads of {self.width // self.num_heads} values cannot be rotated")


def build_llama(sizes: DecoderConfig) -> LlamaForCausalLM:
    """Build a decoder of these sizes with initial values."""
    config = LlamaConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.mlp_width,
        max_position_embeddings=sizes.max_positions,
        rms_norm_eps=sizes.rms_eps,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def restore_rotary(model: LlamaForCausalLM) -> None:
    """Compute the rotary frequencies again, in float32.

    No checkpoint holds them, so a network built on the meta device lacks them, and a cast to half precision would
    make them inexact.
    """
    model.model.rotary_emb = LlamaRotaryEmbedding(config=model.config)
