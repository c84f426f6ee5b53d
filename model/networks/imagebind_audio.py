"""ImageBind's audio encoder (arXiv:2305.05665): mel spectrograms to vectors of the space that all modalities share.

Knows no checkpoints and no families. Parameters are named by what they are; `key_renames` maps the published names.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.networks.sizes import check_sizes

STEM_EPS = 1e-5
NORM_EPS = 1e-6
MAX_SCALE = 100.0
"""Bound of the factor by which the original multiplies the normalised vectors."""

_RENAMES = (
    (r"modality_preprocessors\.audio\.cls_token", "cls_token"),
    (r"modality_preprocessors\.audio\.pos_embedding_helper\.pos_embed", "pos_embed"),
    (r"modality_preprocessors\.audio\.rgbt_stem\.proj\.", "patch_embed."),
    (r"modality_preprocessors\.audio\.rgbt_stem\.norm_layer\.", "patch_norm."),
    (r"modality_trunks\.audio\.blocks\.", "blocks."),
    (r"modality_heads\.audio\.0\.", "norm."),
    (r"modality_heads\.audio\.2\.", "head."),
    (r"modality_postprocessors\.audio\.1\.log_logit_scale", "log_scale"),
)


def key_renames(prefix: str) -> tuple[tuple[str, str], ...]:
    """Return regular expressions that map the published names, after `prefix`, to ours after the same prefix."""
    return tuple((f"^{re.escape(prefix)}{pattern}", f"{prefix}{name}") for pattern, name in _RENAMES)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageBindAudioConfig:
    """Sizes of the encoder; patches overlap, as they are `kernel` wide and `stride` apart."""

    width: int
    depth: int
    num_heads: int
    out_width: int
    num_bins: int = 128
    num_frames: int = 204
    kernel: int = 16
    stride: int = 10

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.kernel > min(self.num_bins, self.num_frames):
            raise ValueError(f"patches of {self.kernel} do not fit into {self.num_bins} bins of {self.num_frames}")

    @property
    def num_patches(self) -> int:
        """Patches of one spectrogram."""
        rows, columns = (1 + (side - self.kernel) // self.stride for side in (self.num_bins, self.num_frames))
        return rows * columns


class AudioAttention(nn.Module):
    """Self-attention over the tokens and one learned key with its value; parameters as in `nn.MultiheadAttention`."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.bias_k = nn.Parameter(torch.empty(1, 1, width))
        self.bias_v = nn.Parameter(torch.empty(1, 1, width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.normal_(self.bias_k, std=0.02)
        nn.init.normal_(self.bias_v, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] to [B, N, C]."""
        q, k, v = functional.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        k = torch.cat((k, self.bias_k.expand(len(x), -1, -1)), dim=1)  # [B, N + 1, C]
        v = torch.cat((v, self.bias_v.expand(len(x), -1, -1)), dim=1)
        q, k, v = (each.reshape(*each.shape[:2], self.num_heads, -1).transpose(1, 2) for each in (q, k, v))
        out: Tensor = self.out_proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class AudioMlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class AudioBlock(nn.Module):
    """One pre-norm block."""

    def __init__(self, config: ImageBindAudioConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = AudioAttention(config.width, config.num_heads)
        self.norm_2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = AudioMlp(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] to [B, N, C]."""
        x = x + self.attn(self.norm_1(x))
        added: Tensor = self.mlp(self.norm_2(x))
        return x + added


class ImageBindAudio(nn.Module):
    """Patches of a spectrogram through pre-norm blocks; the class token's vector is normalised and scaled."""

    def __init__(self, config: ImageBindAudioConfig) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, config.width, config.kernel, stride=config.stride, bias=False)
        self.patch_norm = nn.LayerNorm(config.width, eps=STEM_EPS)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_patches + 1, config.width))
        self.blocks = nn.ModuleList(AudioBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.head = nn.Linear(config.width, config.out_width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(20.0).log())
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, mel: Tensor) -> Tensor:
        """Spectrograms [N, 1, bins, frames], normalised, to vectors [N, out_width] of length `scale`."""
        patches = self.patch_norm(self.patch_embed(mel).flatten(2).transpose(1, 2))  # [N, patches, C]
        x = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        vectors: Tensor = self.head(self.norm(x)[:, 0])
        return functional.normalize(vectors, dim=-1) * self.log_scale.exp().clamp(max=MAX_SCALE)
