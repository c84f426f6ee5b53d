"""VideoChat's vision encoder: the EVA vision transformer, whose last blocks feed a global token of the whole clip."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.families.videochat.gmhra import GlobalTokenBlock
from model.networks.eva_vit import EvaViT, EvaViTConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig(EvaViTConfig):
    """Sizes of the encoder; `num_global_blocks` of the trunk's last blocks feed the global token."""

    num_global_blocks: int

    def __post_init__(self) -> None:
        EvaViTConfig.__post_init__(self)
        assert 0 <= self.num_global_blocks <= self.depth, "each global block follows a block of the trunk"

    @property
    def global_mlp_width(self) -> int:
        """Hidden width of the global blocks' MLPs; the original rounds here, and truncates in the trunk."""
        return round(self.mlp_ratio * self.width)

    def num_tokens(self, num_frames: int) -> int:
        """Tokens of a clip: for each frame its patches and a class token, and one global token."""
        return num_frames * (self.grid**2 + 1) + 1


class VisionEncoder(EvaViT):
    """Encodes each frame by itself, and all frames together in one global token. No norm at the end."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.config = config
        self.gmhra_cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.gmhra = nn.ModuleList(
            GlobalTokenBlock(config.width, num_heads=config.num_heads, mlp_width=config.global_mlp_width)
            for _ in range(config.num_global_blocks)
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, T, 3, H, W], normalised, to [B, T * (patches + 1) + 1, C]; the global token is the last."""
        size = self.config.image_size
        assert pixel_values.ndim == 5 and pixel_values.shape[2:] == (3, size, size), pixel_values.shape
        num_clips, num_frames = pixel_values.shape[:2]
        token = self.gmhra_cls_token.expand(num_clips, -1, -1)  # [B, 1, C]
        first_global = len(self.blocks) - len(self.gmhra)
        frames = pixel_values
        for number, tokens in enumerate(self.tokens_by_block(pixel_values.flatten(0, 1))):
            frames = tokens.reshape(num_clips, num_frames, *tokens.shape[1:])  # [B, T, 1 + patches, C]
            if number >= first_global:
                token = self.gmhra[number - first_global](token, frames)
        return torch.cat((frames.flatten(1, 2), token), dim=1)
