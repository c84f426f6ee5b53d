"""The Video-ChatGPT network, in sizes that a test can train."""

import torch

from model.families.video_chatgpt.network import (
    NUM_TEMPORAL_TOKENS,
    VideoChatGPTConfig,
    VideoChatGPTNetwork,
)
from model.families.video_chatgpt.published import PUBLISHED_7B
from model.memory_estimate import num_parameters
from model.networks.clip import ClipVisionConfig
from model.networks.llama import DecoderConfig
from model.video.spec import MAX_FRAME_COUNT

SMALL = VideoChatGPTConfig(
    vision=ClipVisionConfig(image_size=8, patch_size=4, width=16, depth=3, num_heads=2, mlp_width=24),
    decoder=DecoderConfig(vocab_size=40, width=12, depth=1, num_heads=2, mlp_width=24, max_positions=128),
    added_tokens=("<vid_start>",),
)


def small() -> VideoChatGPTNetwork:
    torch.manual_seed(2)
    return VideoChatGPTNetwork(SMALL)


def test_the_published_sizes_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        network = VideoChatGPTNetwork(PUBLISHED_7B)
    unused = 12_596_224 + 2_048  # the tower's last layer, and the norm behind it
    assert num_parameters(network.vision_tower) == 303_179_776 - unused
    assert num_parameters(network.mm_projector) == 4_198_400
    assert num_parameters(network.language_model) == 6_738_415_616 + 6 * 2 * 4096  # LLaMA, and six tokens more
    assert PUBLISHED_7B.parts[0].shape == (356, 1024)


@torch.no_grad()
def test_the_number_of_features_does_not_depend_on_the_number_of_frames() -> None:
    network = small()
    for num_frames in (1, 5, 100):
        features = network.encode(torch.randn(2, num_frames, 3, 8, 8))["video"]
        assert features.shape == (2, 104, 16)
        assert features.shape[1:] == SMALL.parts[0].shape
        assert bool(features[:, :num_frames].any(-1).all())
        assert not features[:, num_frames:100].any()
    assert network.project("video", features).shape == (2, 104, 12)


def test_the_most_frames_of_a_session_are_the_temporal_tokens() -> None:
    assert MAX_FRAME_COUNT <= NUM_TEMPORAL_TOKENS


@torch.no_grad()
def test_temporal_tokens_depend_on_the_order_of_frames_and_spatial_ones_do_not() -> None:
    network = small()
    frames = torch.randn(1, 5, 3, 8, 8)
    forwards, backwards = (network.encode(clip)["video"][0] for clip in (frames, frames.flip(1)))
    torch.testing.assert_close(forwards[:5], backwards[:5].flip(0))
    torch.testing.assert_close(forwards[100:], backwards[100:])
