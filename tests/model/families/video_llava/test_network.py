"""The network of the original Video-LLaVA, in sizes that a test can train."""

import pytest
import torch

from model.families.video_llava.network import TemporalClipEncoder, VideoLlavaOriginalNetwork
from model.families.video_llava.published import PUBLISHED_7B
from model.memory_estimate import num_parameters
from model.networks.clip import ClipVisionConfig
from model.networks.llama import DecoderConfig
from model.networks.video_llava import VideoLlavaConfig

SMALL = VideoLlavaConfig(
    vision=ClipVisionConfig(image_size=8, patch_size=4, width=16, depth=3, num_heads=2, mlp_width=24),
    activation="gelu",
    num_frames=2,
    decoder=DecoderConfig(vocab_size=40, width=12, depth=1, num_heads=2, mlp_width=24, max_positions=128),
)


def small() -> VideoLlavaOriginalNetwork:
    torch.manual_seed(2)
    return VideoLlavaOriginalNetwork(SMALL)


def test_the_published_sizes_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        network = VideoLlavaOriginalNetwork(PUBLISHED_7B)
    spatial, temporal = 303_179_776, 24 * (4 * (1024 * 1024 + 1024) + 2 * 1024 + 8 * 1024)
    unused = 12_596_224 + temporal // 24 + 2_048  # the tower's last layer, and the norm behind it
    assert num_parameters(network.video_tower) == spatial + temporal - unused
    assert num_parameters(network.mm_projector) == 20_979_712
    assert num_parameters(network.language_model) == 6_738_415_616
    assert PUBLISHED_7B.parts[0].shape == (2056, 1024)


@torch.no_grad()
def test_every_frame_gives_its_class_token_and_its_patches() -> None:
    network = small()
    features = network.encode(torch.randn(3, 2, 3, 8, 8))["video"]
    assert features.shape == (3, 2 * 5, 16)
    assert features.shape[1:] == SMALL.parts[0].shape
    assert network.project("video", features).shape == (3, 10, 12)


@pytest.mark.parametrize("num_frames", [1, 3, 4])
def test_another_number_of_frames_is_a_mistake_of_the_caller(num_frames: int) -> None:
    with pytest.raises(AssertionError, match="fixed number of frames"):
        small().encode(torch.randn(1, num_frames, 3, 8, 8))


@torch.no_grad()
def test_a_frame_depends_on_the_other_frames_of_its_clip_and_on_no_other_clip() -> None:
    network = small()
    clips = torch.randn(2, 2, 3, 8, 8)
    features = network.encode(clips)["video"]
    clips[1, 1] = -clips[1, 1]
    changed = network.encode(clips)["video"]
    torch.testing.assert_close(changed[0], features[0])
    assert bool((changed[1, :5] - features[1, :5]).abs().amax(-1).min() > 1e-4), "the unchanged frame sees the other"


@torch.no_grad()
def test_attention_over_time_is_between_the_tokens_at_one_place() -> None:
    torch.manual_seed(3)
    layer = TemporalClipEncoder(SMALL).encoder.layers[0]
    layer.self_attn.out_proj.weight.zero_()  # leaves attention over time, and what treats each token by itself
    tokens = torch.randn(2, 5, 16)  # two frames
    before = layer(tokens, None)
    tokens[1, 3] += 1
    difference = (layer(tokens, None) - before).abs().amax(-1)
    assert difference.nonzero().tolist() == [[0, 3], [1, 3]]
