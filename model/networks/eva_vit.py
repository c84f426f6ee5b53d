"""The EVA-style vision transformer of VideoChat, with the global token that walks through its last blocks.

Knows frames and patches; refuses to know prompts, checkpoints and what becomes of the tokens. The
`Blip2VisionModel` of transformers offers no place for the global token's blocks, hence a trunk of our own.
The parameters carry the published names.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.families.videochat.gmhra import GlobalTokenBlock

NORM_EPS = 1e-6
"""Of the trunk; the global token's blocks and the norm after the encoder have 1e-5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """Sizes of the vision transformer; `num_global_blocks` of its last blocks feed the global token."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    num_global_blocks: int
    mlp_ratio: float = 4.3637

    def __post_init__(self) -> None:
        assert self.image_size % self.patch_size == 0, "patches must tile the image"
        assert self.width % self.num_heads == 0, "heads must divide the width"
        assert 0 <= self.num_global_blocks <= self.depth, "a global block follows a block of the trunk"

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def mlp_width(self) -> int:
        """Hidden width of the trunk's MLPs. The original cuts here and rounds in the global blocks."""
        return int(self.mlp_ratio * self.width)

    @property
    def global_mlp_width(self) -> int:
        """Hidden width of the global blocks' MLPs."""
        return round(self.mlp_ratio * self.width)

    def num_tokens(self, num_frames: int) -> int:
        """Tokens that `num_frames` frames become: patches and a class token each, and one global token."""
        return num_frames * (self.grid**2 + 1) + 1


class Attention(nn.Module):
    """Self-attention within a frame. Queries and values have a bias; softmax would cancel one on keys."""

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
    """One pre-norm block of the trunk; frames do not see each other."""

    def __init__(self, config: VisionConfig) -> None:
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
    """Patches of each frame by themselves. The published kernel has a time axis of length 1, dropped here.

    Patches do not overlap, so that the convolution is one matrix product: faster by far in 16 bits on a CPU, and
    never in TF32 on a GPU.
    """

    def __init__(self, config: VisionConfig) -> None:
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
    """Frames to patch tokens, and one global token in which they meet. No norm at the end."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2 + 1, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.gmhra_cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.gmhra = nn.ModuleList(
            GlobalTokenBlock(config.width, num_heads=config.num_heads, mlp_width=config.global_mlp_width)
            for _ in range(config.num_global_blocks)
        )
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, T, 3, H, W], normalised, to [B, T * (patches + 1) + 1, C]; the global token is the last."""
        size = self.config.image_size
        assert pixel_values.ndim == 5 and pixel_values.shape[2:] == (3, size, size), pixel_values.shape
        num_clips, num_frames = pixel_values.shape[:2]
        patches = self.patch_embed(pixel_values.flatten(0, 1)).flatten(2).transpose(1, 2)  # [B*T, patches, C]
        x = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1) + self.pos_embed
        token = self.gmhra_cls_token.expand(num_clips, -1, -1)  # [B, 1, C]
        first_global = len(self.blocks) - len(self.gmhra)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number >= first_global:
                frames = x.reshape(num_clips, num_frames, *x.shape[1:])
                token = self.gmhra[number - first_global](token, frames)
        return torch.cat((x.reshape(num_clips, -1, x.shape[-1]), token), dim=1)
