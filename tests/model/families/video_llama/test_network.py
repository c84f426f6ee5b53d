"""The Video-LLaMA network: published sizes, any number of frames up to its positions, sound or none."""

from dataclasses import replace

import pytest
import torch

from model.families.video_llama.network import VideoLlamaConfig, VideoLlamaNetwork
from model.families.video_llama.published import PUBLISHED_7B
from model.family import blank
from model.memory_estimate import num_parameters
from model.networks.eva_vit import EvaViTConfig
from model.networks.imagebind_audio import ImageBindAudioConfig
from model.networks.llama import DecoderConfig
from model.networks.qformer import QFormerConfig

MEL_SHAPE = (2, 1, 20, 24)
"""Of the spectrograms of a clip, for `SMALL`."""
SMALL = VideoLlamaConfig(
    num_frames=2,
    max_frames=4,
    vision=EvaViTConfig(image_size=8, patch_size=4, width=16, depth=2, num_heads=2),
    qformer=QFormerConfig(width=16, depth=2, num_heads=2, mlp_width=24, num_queries=3),
    video_qformer=QFormerConfig(width=16, depth=2, num_heads=2, mlp_width=24, num_queries=5, cross_every=1),
    style="vicuna",
    audio=ImageBindAudioConfig(width=16, depth=2, num_heads=2, out_width=12, num_bins=20, num_frames=24, kernel=8),
    audio_qformer=QFormerConfig(width=16, depth=2, num_heads=2, mlp_width=24, num_queries=2, cross_every=1),
    num_stretches=2,
    decoder=DecoderConfig(vocab_size=40, width=16, depth=1, num_heads=2, mlp_width=24),
)


@pytest.fixture(scope="module")
def network() -> VideoLlamaNetwork:
    torch.manual_seed(3)
    network = VideoLlamaNetwork(SMALL).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return network


def test_the_published_sizes_have_the_published_numbers_of_parameters() -> None:
    network = blank(VideoLlamaNetwork, PUBLISHED_7B)
    millions = {
        "visual_encoder": 985.9,
        "qformer": 105.2,
        "video_qformer": 18.9,
        "audio_qformer": 19.7,
        "audio_encoder": 86.2,
    }
    for name, expected in millions.items():
        assert num_parameters(network.get_submodule(name)) / 1e6 == pytest.approx(expected, abs=0.1), name
    assert num_parameters(network.decoder) / 1e9 == pytest.approx(6.738, abs=0.001)
    assert {part.name: part.shape for part in PUBLISHED_7B.parts} == {"video": (32, 768), "audio": (8, 768)}


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 3, 4])
def test_any_number_of_frames_up_to_the_positions_gives_the_same_number_of_rows(
    network: VideoLlamaNetwork, num_frames: int
) -> None:
    features = network.encode(torch.randn(2, num_frames, 3, 8, 8))
    assert features.keys() == {"video"}
    assert features["video"].shape == (2, 5, 16)


@torch.no_grad()
def test_frames_and_stretches_of_sound_are_ordered(network: VideoLlamaNetwork) -> None:
    frames, mel = torch.randn(1, 4, 3, 8, 8), torch.randn(1, *MEL_SHAPE)
    features = network.encode(frames, mel)
    turned = network.encode(frames.flip(1), mel.flip(1))
    for part in ("video", "audio"):
        assert (features[part] - turned[part]).abs().max() > 1e-3


@torch.no_grad()
def test_frames_and_sound_do_not_see_each_other(network: VideoLlamaNetwork) -> None:
    frames, mel = torch.randn(1, 4, 3, 8, 8), torch.randn(1, *MEL_SHAPE)
    both = network.encode(frames, mel)
    assert torch.equal(both["video"], network.encode(frames)["video"])
    assert torch.equal(both["audio"], network.encode(-frames, mel)["audio"])


@torch.no_grad()
def test_clips_with_sound_are_the_same_alone_and_in_a_batch(network: VideoLlamaNetwork) -> None:
    frames, mel = torch.randn(3, 2, 3, 8, 8), torch.randn(3, *MEL_SHAPE)
    together = network.encode(frames, mel)
    for number in range(3):
        alone = network.encode(frames[number : number + 1], mel[number : number + 1])
        for part in ("video", "audio"):
            torch.testing.assert_close(alone[part][0], together[part][number])


def test_a_vision_only_network_has_no_module_for_sound() -> None:
    config = replace(SMALL, audio=None, audio_qformer=None)
    assert not any("audio" in name for name in VideoLlamaNetwork(config).state_dict())
    assert [part.name for part in config.parts] == ["video"]
    assert VideoLlamaConfig.from_json(config.to_json()) == config
    with pytest.raises(AssertionError):
        replace(SMALL, audio=None)
