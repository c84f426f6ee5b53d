"""The vision encoder with its global token."""

import torch

from model.families.videochat.vision import VisionConfig, VisionEncoder

CONFIG = VisionConfig(image_size=12, patch_size=4, width=40, depth=3, num_heads=4, num_global_blocks=2)


def encoder(config: VisionConfig = CONFIG) -> VisionEncoder:
    """An encoder as if trained: no parameter is zero."""
    torch.manual_seed(1)
    made = VisionEncoder(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def test_mlp_widths_are_truncated_in_the_trunk_and_rounded_in_the_global_blocks() -> None:
    # 4.3637 * 40 = 174.548
    assert (CONFIG.mlp_width, CONFIG.global_mlp_width) == (174, 175)
    made = VisionEncoder(CONFIG).state_dict()
    assert made["blocks.0.mlp.fc1.weight"].shape == (174, 40)
    assert made["gmhra.0.mlp.c_fc.weight"].shape == (175, 40)


@torch.no_grad()
def test_any_number_of_frames_becomes_their_tokens_and_one_global_token() -> None:
    made = encoder()
    for num_frames in (1, 2, 5):
        tokens = made(torch.randn(2, num_frames, 3, 12, 12))
        assert tokens.shape == (2, num_frames * 10 + 1, 40)
        assert tokens.shape[1] == CONFIG.num_tokens(num_frames)


@torch.no_grad()
def test_frames_affect_each_other_in_the_global_token_only() -> None:
    made = encoder()
    pixel_values = torch.randn(1, 3, 3, 12, 12)
    changed = pixel_values.clone()
    changed[:, 1] += 1
    before, after = made(pixel_values), made(changed)
    differs = (before - after).abs().amax(dim=-1)[0] > 1e-4  # [3 * 10 + 1]
    assert not differs[:10].any() and not differs[20:30].any()
    assert differs[10:20].all() and differs[30]


@torch.no_grad()
def test_without_global_blocks_the_global_token_stays_as_learned() -> None:
    blind = VisionConfig(image_size=12, patch_size=4, width=40, depth=1, num_heads=4, num_global_blocks=0)
    made = encoder(blind)
    assert torch.equal(made(torch.randn(1, 2, 3, 12, 12))[:, -1:], made.gmhra_cls_token)
