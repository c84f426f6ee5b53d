"""BLIP-2's Q-Former: transformers' module for our sizes, and the norm before it that always computes in float32."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from model.networks.sizes import check_sizes

KEY_RENAMES = (
    (r"^(video_|audio_)?Qformer\.bert\.embeddings\.LayerNorm\.", r"\1qformer.layernorm."),
    (r"^(video_|audio_)?Qformer\.bert\.", r"\1qformer."),
    (r"attention\.self\.", "attention.attention."),
)
"""Regular expressions that map the published names of Q-Formers' parameters to those of transformers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QFormerConfig:
    """Sizes of a Q-Former; every `cross_every`-th layer, from the first on, attends to the encoder's tokens."""

    width: int
    depth: int
    num_heads: int
    mlp_width: int
    num_queries: int = 32
    cross_every: int = 2

    def __post_init__(self) -> None:
        check_sizes(self)


def build_qformer(sizes: QFormerConfig, *, encoder_width: int) -> Blip2QFormerModel:
    """Build a Q-Former with initial values, without its queries, over tokens of `encoder_width`."""
    return Blip2QFormerModel(
        Blip2QFormerConfig(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.num_heads,
            intermediate_size=sizes.mlp_width,
            cross_attention_frequency=sizes.cross_every,
            encoder_hidden_size=encoder_width,
            layer_norm_eps=1e-12,
            hidden_act="gelu",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
    )


class Float32Norm(nn.LayerNorm):
    """A layer norm that always computes in float32, as in the original."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C], in the dtype of `x`."""
        weight, bias = self.weight.float(), self.bias.float()
        return functional.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)
