"""CLIP's vision transformer in any sizes, with the layers of transformers.

The attributes are named like the tensors of published checkpoints after their prefix `vision_model.`. Families load no
more layers than they use: `ClipEncoder` lacks the last layer, and `ClipImageEmbedder` has all of them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPVisionEmbeddings

from model.networks.sizes import check_sizes, shown

OPENAI_ACTIVATION = "quick_gelu"
"""The activation of OpenAI's CLIPs. LAION's use `gelu`, and nothing in the tensors tells them apart."""
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipVisionConfig:
    """Sizes of a vision transformer. `depth` counts the published layers, also those that a family does not use.

    Raises:
        ValueError: a size is impossible.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.patch_size > self.image_size:
            raise ValueError(f"patches of {self.patch_size} pixels do not fit into an image of {self.image_size}")

    @property
    def num_patches(self) -> int:
        """Patches of one frame."""
        return (self.image_size // self.patch_size) ** 2


CLIP_LARGE = ClipVisionConfig(image_size=224, patch_size=14, width=1024, depth=24, num_heads=16, mlp_width=4096)
"""ViT-L/14, the size of openai/clip-vit-large-patch14 and of LanguageBind's towers."""


def clip_sizes(values: Mapping[str, Any]) -> ClipVisionConfig:
    """Convert the sizes of a vision transformer from Hugging Face's names.

    Raises:
        KeyError: a size is missing.
        ValueError: a size is impossible, or the epsilon of the norms is not CLIP's.
    """
    if values.get("layer_norm_eps", LAYER_NORM_EPS) != LAYER_NORM_EPS:
        raise ValueError(f"the layer_norm_eps of a CLIP is {LAYER_NORM_EPS}, not {shown(values['layer_norm_eps'])}")
    return ClipVisionConfig(
        image_size=values["image_size"],
        patch_size=values["patch_size"],
        width=values["hidden_size"],
        depth=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        mlp_width=values["intermediate_size"],
    )


def keys_beyond_encoder(sizes: ClipVisionConfig, *, prefix: str) -> tuple[str, ...]:
    """Return the published keys, as regular expressions, of what `ClipEncoder` lacks: last layer, last norm, buffer."""
    last_layer = sizes.depth - 1
    names = (rf"encoder\.layers\.{last_layer}\..+", r"post_layernorm\.(weight|bias)", r"embeddings\.position_ids")
    return tuple(re.escape(prefix) + name for name in names)


def to_transformers(sizes: ClipVisionConfig, *, activation: str, num_layers: int) -> CLIPVisionConfig:
    """Return the settings of transformers' modules for the first `num_layers` layers."""
    return CLIPVisionConfig(
        hidden_size=sizes.width,
        num_hidden_layers=num_layers,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.mlp_width,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        hidden_act=activation,
        layer_norm_eps=LAYER_NORM_EPS,
        attention_dropout=0.0,
        attn_implementation="sdpa",
    )


class ClipEncoder(nn.Module):
    """A vision transformer without its last layer and last norm. Attention stays within each frame."""

    def __init__(self, sizes: ClipVisionConfig, *, activation: str) -> None:
        super().__init__()
        clip = to_transformers(sizes, activation=activation, num_layers=sizes.depth - 1)
        self.embeddings = CLIPVisionEmbeddings(clip)
        self.pre_layrnorm = nn.LayerNorm(sizes.width, eps=LAYER_NORM_EPS)  # spelled like this in every checkpoint
        self.encoder = CLIPEncoder(clip)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames [N, 3, H, W] into tokens [N, 1 + S, C]; the class token comes first."""
        encoded: Tensor = self.encoder(inputs_embeds=self.pre_layrnorm(self.embeddings(frames))).last_hidden_state
        return encoded

    def restore_buffers(self) -> None:
        """Compute the ids of the positions, which no checkpoint holds."""
        restore_positions(self.embeddings)


class ClipImageEmbedder(nn.Module):
    """A whole vision transformer with CLIP's projection: one vector for each frame."""

    def __init__(self, sizes: ClipVisionConfig, *, activation: str, projected_width: int) -> None:
        super().__init__()
        clip = to_transformers(sizes, activation=activation, num_layers=sizes.depth)
        self.embeddings = CLIPVisionEmbeddings(clip)
        self.pre_layrnorm = nn.LayerNorm(sizes.width, eps=LAYER_NORM_EPS)
        self.encoder = CLIPEncoder(clip)
        self.post_layernorm = nn.LayerNorm(sizes.width, eps=LAYER_NORM_EPS)
        self.visual_projection = nn.Linear(sizes.width, projected_width, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Embed frames [N, 3, H, W] as vectors [N, projected], which are not normalised."""
        encoded: Tensor = self.encoder(inputs_embeds=self.pre_layrnorm(self.embeddings(frames))).last_hidden_state
        embeds: Tensor = self.visual_projection(self.post_layernorm(encoded[:, 0]))
        return embeds

    def restore_buffers(self) -> None:
        """Compute the ids of the positions, which no checkpoint holds."""
        restore_positions(self.embeddings)


def restore_positions(embeddings: CLIPVisionEmbeddings) -> None:
    """Compute the ids of the positions; a network built on the meta device lacks them."""
    embeddings.position_ids = torch.arange(embeddings.num_positions).unsqueeze(0)
