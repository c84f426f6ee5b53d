"""One block of VideoChat's global token, which attends to all tokens of all frames of its clip.

Before the Q-Former, frames interact only here, and only the depthwise convolution encodes their order in time. The
global token does not change the trunk's tokens. GMHRA is the global relation aggregator of UniFormerV2.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-5


class GlobalAttention(nn.Module):
    """Cross-attention of one query token, with the parameters of `nn.MultiheadAttention` (rows q | k | v).

    With a single query, keys and values need not be computed: `q . (K t) = (K^T q) . t`, and the value weights can be
    applied to the weighted mean of the tokens. That saves two products of every token with a [C, C] matrix, a
    thirtieth of the encoder's work. The keys' bias adds the same number to all scores of a head, which cancels in the
    softmax.
    """

    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """The query [B, 1, C] over tokens [B, L, C] to [B, 1, C]."""
        to_query, to_key, to_value = self.in_proj_weight.chunk(3)
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)
        per_head = (self.num_heads, -1, x.shape[-1])  # of a [C, C] matrix: [heads, C/heads, C]
        q = functional.linear(x[:, 0], to_query, query_bias).reshape(len(x), self.num_heads, -1)
        q = q * q.shape[-1] ** -0.5  # [B, heads, C/heads]
        key_query = torch.einsum("bhd,hdc->bhc", q, to_key.reshape(per_head))  # [B, heads, C]
        scores = key_query @ tokens.transpose(1, 2)  # [B, heads, L]
        mean = scores.float().softmax(-1).to(tokens.dtype) @ tokens  # [B, heads, C]
        mixed = torch.einsum("bhc,hdc->bhd", mean, to_value.reshape(per_head)).flatten(1) + value_bias
        out: Tensor = self.out_proj(mixed.unsqueeze(1))
        return out


class GlobalMlp(nn.Module):
    """Two linear layers around an exact GELU. The original's dropout of 0.5, used in training only, is left out."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        out: Tensor = self.c_proj(functional.gelu(self.c_fc(x)))
        return out


class GlobalTokenBlock(nn.Module):
    """Adds positions to the normed patches, then cross-attention and an MLP; residuals apply to the token alone."""

    def __init__(self, width: int, *, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.dpe = nn.Conv3d(width, width, kernel_size=3, padding=1, groups=width)
        self.attn = GlobalAttention(width, num_heads=num_heads)
        self.ln_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.ln_2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.ln_3 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = GlobalMlp(width, mlp_width)
        # As in the original, an untrained block changes nothing.
        for module in (self.attn.out_proj, self.mlp.c_proj):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        assert self.dpe.bias is not None
        nn.init.zeros_(self.dpe.bias)

    def forward(self, token: Tensor, frames: Tensor) -> Tensor:
        """The token [B, 1, C] and the trunk's frames [B, T, 1 + patches, C] to the token [B, 1, C]."""
        normed = self.ln_3(frames)
        tokens = torch.cat((normed[:, :, :1], self._with_positions(normed[:, :, 1:])), dim=2).flatten(1, 2)
        token = token + self.attn(self.ln_1(token), tokens)
        added: Tensor = self.mlp(self.ln_2(token))
        return token + added

    def _with_positions(self, patches: Tensor) -> Tensor:
        num_clips, num_frames, num_patches, width = patches.shape
        grid = math.isqrt(num_patches)
        volume = patches.reshape(num_clips, num_frames, grid, grid, width).permute(0, 4, 1, 2, 3)
        positions: Tensor = self.dpe(volume)  # [B, C, T, grid, grid]
        return patches + positions.permute(0, 2, 3, 4, 1).flatten(2, 3)
