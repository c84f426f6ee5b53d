"""The vision transformer that families share."""

import torch

from model.networks.eva_vit import EvaViTConfig, PatchEmbed

CONFIG = EvaViTConfig(image_size=12, patch_size=4, width=40, depth=3, num_heads=4)


@torch.no_grad()
def test_patches_are_those_of_the_published_convolution() -> None:
    embed, frames = PatchEmbed(CONFIG), torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(embed(frames), embed.proj(frames))
