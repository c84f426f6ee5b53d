"""The EVA-style vision transformer: patches of single frames through pre-norm blocks.

Knows frames and patches, but no prompts, checkpoints or families. It is our own because `Blip2VisionModel` of
transformers does not give the tokens after each block, which VideoChat needs. Parameters carry the published names.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.networks.sizes import check_ratio, check_sizes

NORM_EPS = 1e-6
"""Epsilon of the norms inside the blocks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaViTConfig:
    """Sizes of the vision transformer."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.3637

    def __post_init__(self) -> None:
        check_sizes(self, may_be_zero=("num_global_blocks",))
        check_ratio("mlp_ratio", self.mlp_ratio)
        assert self.image_size % self.patch_size == 0, "patches must tile the image"

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLPs; the original truncates it to a whole number."""
        return int(self.mlp_ratio * self.width)


class Attention(nn.Module):
    """Self-attention within a frame. Queries and values have a bias; a bias on keys would cancel in the softmax."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[F, N, C] to [F, N, C]."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = functional.linear(x, self.qkv.weight, bias).reshape(*x.shape[:2], 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [F, heads, N, C/heads]
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.proj(mixed)
        return out


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """One pre-norm block. Attention stays within each frame."""

    def __init__(self, config: EvaViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = Attention(config.width, config.num_heads)
        self.norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = Mlp(config.width, config.mlp_width)

    def forward(self, x: Tensor) -> Tensor:
        """[F, N, C] to [F, N, C]."""
        x = x + self.attn(self.norm1(x))
        added: Tensor = self.mlp(self.norm2(x))
        return x + added


class PatchEmbed(nn.Module):
    """Patches of each frame. The published kernel has a time axis of length 1, which is dropped here.

    Patches do not overlap, so the convolution is one matrix product. That is much faster in 16 bits on a CPU, and
    it never runs in TF32 on a GPU.
    """

    def __init__(self, config: EvaViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, frames: Tensor) -> Tensor:
        """[F, 3, H, W] to [F, C, H/patch, W/patch]."""
        size = self.proj.kernel_size[0]
        rows, columns = frames.shape[2] // size, frames.shape[3] // size
        cut = frames.reshape(len(frames), 3, rows, size, columns, size)
        pixels = cut.permute(0, 2, 4, 1, 3, 5).flatten(3)  # [F, rows, columns, 3 * size * size]
        return functional.linear(pixels, self.proj.weight.flatten(1), self.proj.bias).permute(0, 3, 1, 2)


class EvaViT(nn.Module):
    """The trunk of blocks. It has no norm at the end; the families that use it differ in what follows the blocks."""

    def __init__(self, config: EvaViTConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2 + 1, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def tokens_by_block(self, frames: Tensor) -> Iterator[Tensor]:
        """Frames [F, 3, H, W], normalised, to tokens [F, 1 + patches, C] after each block, the class token first."""
        patches = self.patch_embed(frames).flatten(2).transpose(1, 2)  # [F, patches, C]
        x = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
            yield x
