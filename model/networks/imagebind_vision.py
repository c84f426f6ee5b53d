"""ImageBind's vision encoder (arXiv:2305.05665): pairs of frames to vectors of the space that all modalities share.

Knows no checkpoints and no families. `key_renames` maps the published names to ours.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.networks.sizes import check_sizes

NORM_EPS = 1e-6

_RENAMES = (
    (r"modality_preprocessors\.vision\.cls_token", "cls_token"),
    (r"modality_preprocessors\.vision\.pos_embedding_helper\.pos_embed", "pos_embed"),
    (r"modality_preprocessors\.vision\.rgbt_stem\.proj\.1\.", "patch_embed."),
    (r"modality_trunks\.vision\.pre_transformer_layer\.0\.", "pre_norm."),
    (r"modality_trunks\.vision\.blocks\.", "blocks."),
    (r"modality_heads\.vision\.0\.", "norm."),
    (r"modality_heads\.vision\.2\.", "head."),
)


def key_renames(prefix: str) -> tuple[tuple[str, str], ...]:
    """Return regular expressions that map the published names, after `prefix`, to ours after the same prefix."""
    return tuple((f"^{re.escape(prefix)}{pattern}", f"{prefix}{name}") for pattern, name in _RENAMES)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageBindVisionConfig:
    """Sizes of the encoder; a patch covers `num_frames` frames."""

    width: int
    depth: int
    num_heads: int
    out_width: int
    image_size: int = 224
    patch_size: int = 14
    num_frames: int = 2

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.patch_size > self.image_size:
            raise ValueError(f"patches of {self.patch_size} pixels do not fit into an image of {self.image_size}")

    @property
    def num_patches(self) -> int:
        """Patches of one input."""
        return (self.image_size // self.patch_size) ** 2


class VisionBlock(nn.Module):
    """One pre-norm block; its MLP has an exact GELU."""

    def __init__(self, config: ImageBindVisionConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = nn.MultiheadAttention(config.width, config.num_heads, batch_first=True)
        self.norm_2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(config.width, 4 * config.width), "fc2": nn.Linear(4 * config.width, config.width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, C] to [N, tokens, C]."""
        normed = self.norm_1(x)
        attended, _ = self.attn(normed, normed, normed, need_weights=False)
        x = x + attended
        added: Tensor = self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm_2(x))))
        return x + added


class ImageBindVision(nn.Module):
    """Patches of pairs of frames through pre-norm blocks; the class token's vector is normalised."""

    def __init__(self, config: ImageBindVisionConfig) -> None:
        super().__init__()
        kernel = (config.num_frames, config.patch_size, config.patch_size)
        self.patch_embed = nn.Conv3d(3, config.width, kernel, stride=kernel, bias=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_patches + 1, config.width))
        self.pre_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.head = nn.Linear(config.width, config.out_width, bias=False)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode normalised frames [N, 3, num_frames, S, S] into vectors [N, out_width] of length 1."""
        patches = self.patch_embed(frames).flatten(2).transpose(1, 2)  # [N, patches, C]
        x = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1) + self.pos_embed
        x = self.pre_norm(x)
        for block in self.blocks:
            x = block(x)
        return functional.normalize(self.head(self.norm(x)[:, 0]), dim=-1)
