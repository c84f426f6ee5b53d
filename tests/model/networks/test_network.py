"""Every family's network, in sizes that a test can train."""

import json
from collections.abc import Callable

import pytest
import torch

from model.families.video_chatgpt import published as published_video_chatgpt
from model.families.video_chatgpt.network import VideoChatGPTNetwork
from model.families.video_llama import published as published_video_llama
from model.families.video_llama.network import VideoLlamaNetwork
from model.families.video_llava import published as published_video_llava
from model.families.video_llava.network import VideoLlavaOriginalNetwork
from model.families.video_llava_hf import published as published_video_llava_hf
from model.families.video_llava_hf.network import VideoLlavaHFNetwork
from model.families.videochat import published as published_videochat
from model.families.videochat.network import VideoChatNetwork
from model.families.vtimellm.network import VTimeLLMNetwork
from model.families.vtimellm.sizes import PUBLISHED_7B as PUBLISHED_VTIMELLM
from model.networks.network import NetworkConfig, SoundNetwork, VideoNetwork
from tests.model.families.video_chatgpt.test_network import SMALL as SMALL_VIDEO_CHATGPT
from tests.model.families.video_llama.test_network import MEL_SHAPE
from tests.model.families.video_llama.test_network import SMALL as SMALL_VIDEO_LLAMA
from tests.model.families.video_llava.test_network import SMALL as SMALL_VIDEO_LLAVA
from tests.model.families.videochat.test_network import SMALL as SMALL_VIDEOCHAT
from tests.model.families.vtimellm.test_network import SMALL as SMALL_VTIMELLM

SMALL = (SMALL_VIDEOCHAT, SMALL_VIDEO_CHATGPT, SMALL_VIDEO_LLAVA, SMALL_VIDEO_LLAMA, SMALL_VTIMELLM)
PUBLISHED = (
    published_videochat.PUBLISHED_7B,
    published_videochat.PUBLISHED_13B,
    published_video_chatgpt.PUBLISHED_7B,
    published_video_llava.PUBLISHED_7B,
    published_video_llava_hf.PUBLISHED_7B,
    published_video_llama.PUBLISHED_7B,
    published_video_llama.PUBLISHED_13B,
    PUBLISHED_VTIMELLM,
)
NETWORKS: dict[str, Callable[[], VideoNetwork]] = {
    "videochat": lambda: VideoChatNetwork(SMALL_VIDEOCHAT),
    "video-chatgpt": lambda: VideoChatGPTNetwork(SMALL_VIDEO_CHATGPT),
    "video-llama": lambda: VideoLlamaNetwork(SMALL_VIDEO_LLAMA),
    "video-llava": lambda: VideoLlavaOriginalNetwork(SMALL_VIDEO_LLAVA),
    "video-llava-hf": lambda: VideoLlavaHFNetwork(SMALL_VIDEO_LLAVA),
    "vtimellm": lambda: VTimeLLMNetwork(SMALL_VTIMELLM),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> VideoNetwork:
    torch.manual_seed(2)
    return NETWORKS[str(request.param)]()


@torch.no_grad()
def test_a_clip_has_the_same_features_alone_and_in_a_batch(network: VideoNetwork) -> None:
    for parameter in network.parameters():  # Q-Formers hardly look at their inputs at the start
        parameter.add_(torch.randn_like(parameter) * 0.1)
    clips = torch.randn(3, 2, 3, 8, 8)
    together = network.encode(clips)["video"]
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    for number in range(3):
        torch.testing.assert_close(network.encode(clips[number : number + 1])["video"][0], together[number])


def test_every_parameter_gets_a_gradient(network: VideoNetwork) -> None:
    with torch.no_grad():
        for parameter in network.parameters():  # zeros at the start of VideoChat's global blocks stop gradients
            parameter.add_(torch.randn_like(parameter) * 0.2)
    frames = torch.randn(1, 2, 3, 8, 8)
    if isinstance(network, SoundNetwork):
        features = network.encode(frames, torch.randn(1, *MEL_SHAPE))
    else:
        features = network.encode(frames)
    words = torch.tensor([[5, 7, 11]])
    parts = [network.project(name, part) for name, part in features.items()]
    rows = torch.cat((*parts, network.decoder.get_input_embeddings()(words)), dim=1)
    logits = network.decoder(inputs_embeds=rows).logits[:, -3:]
    torch.nn.functional.cross_entropy(logits[0], words[0]).backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    # A bias on keys adds the same to all scores of a query, which cancels in the softmax.
    still = [
        name
        for name, gradient in gradients.items()
        if gradient is None or (not gradient.any() and not name.endswith(("key.bias", "k_proj.bias")))
    ]
    assert still == []


@torch.no_grad()
def test_rotary_frequencies_survive_half_precision_and_the_meta_device(network: VideoNetwork) -> None:
    fresh = network.decoder.model.rotary_emb.inv_freq.clone()
    network.bfloat16()
    assert not torch.equal(network.decoder.model.rotary_emb.inv_freq.float(), fresh)
    network.restore_buffers()
    assert torch.equal(network.decoder.model.rotary_emb.inv_freq, fresh)


@pytest.mark.parametrize("config", [*SMALL, *PUBLISHED])
def test_sizes_survive_json(config: NetworkConfig) -> None:
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("config", SMALL)
def test_an_unknown_size_is_refused_and_so_is_a_missing_one(config: NetworkConfig) -> None:
    with pytest.raises(TypeError, match="depht"):
        type(config).from_json(config.to_json() | {"depht": 3})
    with pytest.raises(KeyError, match="decoder"):
        type(config).from_json({name: size for name, size in config.to_json().items() if name != "decoder"})
