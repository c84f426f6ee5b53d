"""The VideoChat network, in sizes that a test can train."""

import torch

from model.families.videochat.network import QFormerConfig, VideoChatConfig, VideoChatNetwork
from model.families.videochat.published import PUBLISHED_7B, PUBLISHED_13B
from model.families.videochat.vision import VisionConfig
from model.memory_estimate import num_parameters
from model.networks.llama import DecoderConfig

SMALL = VideoChatConfig(
    num_frames=2,
    vision=VisionConfig(image_size=8, patch_size=4, width=16, depth=2, num_heads=2, num_global_blocks=1),
    qformer=QFormerConfig(width=12, depth=2, num_heads=2, mlp_width=24, num_queries=3, num_extra_queries=4),
    decoder=DecoderConfig(vocab_size=40, width=16, depth=1, num_heads=2, mlp_width=24, max_positions=64),
)


def small() -> VideoChatNetwork:
    torch.manual_seed(2)
    return VideoChatNetwork(SMALL)


def test_the_published_sizes_have_the_published_numbers_of_parameters() -> None:
    for config, projection, decoder in (
        (PUBLISHED_7B, 3_149_824, 6_738_423_808),
        (PUBLISHED_13B, 3_937_280, 13_015_874_560),
    ):
        with torch.device("meta"):
            network = VideoChatNetwork(config)
        assert num_parameters(network.visual_encoder) == 985_894_528 + 202_340_736
        assert num_parameters(network.ln_vision) == 2_816
        assert num_parameters(network.qformer) == 105_137_664
        assert network.query_tokens.numel() + network.extra_query_tokens.numel() == 73_728
        assert num_parameters(network.llama_proj) == projection
        assert num_parameters(network.llama_model) == decoder


@torch.no_grad()
def test_the_number_of_features_does_not_depend_on_the_number_of_frames() -> None:
    network = small()
    for num_frames in (1, 2, 5):
        features = network.encode(torch.randn(3, num_frames, 3, 8, 8))["video"]
        assert features.shape == (3, 7, 12)
        assert features.shape[1:] == SMALL.parts[0].shape
    assert network.project("video", features).shape == (3, 7, 16)
