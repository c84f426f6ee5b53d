"""The VTimeLLM network, in sizes that a test can train."""

import torch

from model.families.vtimellm.network import NUM_FRAMES, VTimeLLMConfig, VTimeLLMNetwork
from model.families.vtimellm.sizes import PUBLISHED_7B
from model.features import PartSpec
from model.memory_estimate import num_parameters
from model.networks.clip import ClipVisionConfig
from model.networks.llama import DecoderConfig

SMALL = VTimeLLMConfig(
    vision=ClipVisionConfig(image_size=8, patch_size=4, width=16, depth=2, num_heads=2, mlp_width=24),
    projected_width=20,
    decoder=DecoderConfig(vocab_size=40, width=12, depth=1, num_heads=2, mlp_width=24, max_positions=256),
)


def small() -> VTimeLLMNetwork:
    torch.manual_seed(2)
    return VTimeLLMNetwork(SMALL)


def test_the_published_sizes_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        network = VTimeLLMNetwork(PUBLISHED_7B)
    assert num_parameters(network.vision_tower) == 303_179_776 + 1024 * 768
    assert num_parameters(network.mm_projector) == 768 * 4096 + 4096
    assert num_parameters(network.language_model) == 6_738_415_616
    assert PUBLISHED_7B.parts == (PartSpec(name="video", shape=(100, 768)),)


@torch.no_grad()
def test_each_frame_is_a_token_that_does_not_depend_on_the_others() -> None:
    network = small()
    frames = torch.randn(2, NUM_FRAMES, 3, 8, 8)
    features = network.encode(frames)["video"]
    assert features.shape == (2, *SMALL.parts[0].shape)
    torch.testing.assert_close(network.encode(frames.flip(1))["video"], features.flip(1))
    assert network.project("video", features).shape == (2, NUM_FRAMES, 12)


@torch.no_grad()
def test_embeddings_are_not_normalised() -> None:
    network = small()
    network.vision_tower.visual_projection.weight.mul_(2)
    frames = torch.randn(1, 2, 3, 8, 8)
    doubled = network.encode(frames)["video"]
    network.vision_tower.visual_projection.weight.div_(2)
    torch.testing.assert_close(doubled, network.encode(frames)["video"] * 2)
