"""The blocks of the global token."""

import torch
from torch import Tensor, nn

from model.families.videochat.gmhra import GlobalAttention, GlobalTokenBlock

WIDTH, GRID = 16, 3


def block(*, seed: int = 0) -> GlobalTokenBlock:
    """A block as if trained: no parameter is zero."""
    torch.manual_seed(seed)
    made = GlobalTokenBlock(WIDTH, num_heads=2, mlp_width=32)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made.eval()


def clip(*, num_clips: int = 1, num_frames: int = 4) -> tuple[Tensor, Tensor]:
    """A token [B, 1, C] and frames [B, T, 1 + patches, C]."""
    token = torch.randn(num_clips, 1, WIDTH)
    return token, torch.randn(num_clips, num_frames, 1 + GRID * GRID, WIDTH)


def test_an_untrained_block_does_not_change_the_token() -> None:
    token, frames = clip()
    assert torch.equal(GlobalTokenBlock(WIDTH, num_heads=2, mlp_width=32)(token, frames), token)


@torch.no_grad()
def test_the_order_of_frames_matters_to_the_convolution_only() -> None:
    ordered = block()
    token, frames = clip()
    assert not torch.allclose(ordered(token, frames), ordered(token, frames.flip(1)), atol=1e-3)
    nn.init.zeros_(ordered.dpe.weight)
    torch.testing.assert_close(ordered(token, frames), ordered(token, frames.flip(1)))


@torch.no_grad()
def test_class_tokens_of_frames_are_attended_to_but_have_no_position() -> None:
    token, frames = clip()
    trained = block()
    other = frames.clone()
    other[:, :, 0] += torch.randn(WIDTH)
    assert not torch.allclose(trained(token, frames), trained(token, other), atol=1e-3)

    swapped = frames.clone()
    swapped[:, :, 0] = frames[:, :, 0].flip(1)
    torch.testing.assert_close(trained(token, frames), trained(token, swapped))


@torch.no_grad()
def test_a_clip_has_the_same_token_alone_and_in_a_batch() -> None:
    trained = block()
    tokens, frames = clip(num_clips=3)
    together = trained(tokens, frames)
    for number in range(3):
        alone = trained(tokens[number : number + 1], frames[number : number + 1])
        torch.testing.assert_close(alone[0], together[number])


@torch.no_grad()
def test_one_query_without_keys_and_values_is_multi_head_attention() -> None:
    ours, torchs = GlobalAttention(WIDTH, num_heads=2), nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    torchs.load_state_dict(ours.state_dict())
    query, tokens = torch.randn(3, 1, WIDTH), torch.randn(3, 20, WIDTH)
    torch.testing.assert_close(ours(query, tokens), torchs(query, tokens, tokens)[0])
