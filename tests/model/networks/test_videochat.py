"""The whole VideoChat network, in sizes that a test can train."""

import json

import pytest
import torch

from model.checkpoints.videochat import PUBLISHED_7B, PUBLISHED_13B
from model.networks.eva_vit import VisionConfig
from model.networks.llama import DecoderConfig
from model.networks.videochat import QFormerConfig, VideoChatConfig, VideoChatNetwork

SMALL = VideoChatConfig(
    num_frames=2,
    vision=VisionConfig(image_size=8, patch_size=4, width=16, depth=2, num_heads=2, num_global_blocks=1),
    qformer=QFormerConfig(width=12, depth=2, num_heads=2, mlp_width=24, num_queries=3, num_extra_queries=4),
    decoder=DecoderConfig(vocab_size=40, width=16, depth=1, num_heads=2, mlp_width=24, max_positions=64),
)


def small() -> VideoChatNetwork:
    torch.manual_seed(2)
    return VideoChatNetwork(SMALL)


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


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
        features = network.encode(torch.randn(3, num_frames, 3, 8, 8))
        assert features.shape == (3, 7, 12)
        assert features.shape[1:] == SMALL.feature_shape
    assert network.project(features).shape == (3, 7, 16)


@torch.no_grad()
def test_a_clip_has_the_same_features_alone_and_in_a_batch() -> None:
    network = small()
    clips = torch.randn(3, 2, 3, 8, 8)
    together = network.encode(clips)
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    for number in range(3):
        torch.testing.assert_close(network.encode(clips[number : number + 1])[0], together[number])


def test_every_parameter_learns() -> None:
    network = small().train()
    with torch.no_grad():
        for parameter in network.parameters():  # zeros at the start of the global blocks stop gradients
            parameter.add_(torch.randn_like(parameter) * 0.2)
    video = network.project(network.encode(torch.randn(1, 2, 3, 8, 8)))
    words = torch.tensor([[5, 7, 11]])
    rows = torch.cat((video, network.llama_model.get_input_embeddings()(words)), dim=1)
    logits = network.llama_model(inputs_embeds=rows).logits[:, -3:]
    torch.nn.functional.cross_entropy(logits[0], words[0]).backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    # A bias on keys moves all scores of a query alike, and softmax cancels that.
    still = [
        name
        for name, gradient in gradients.items()
        if gradient is None or (not gradient.any() and not name.endswith("key.bias"))
    ]
    assert still == []


@torch.no_grad()
def test_rotary_frequencies_survive_half_precision_and_the_meta_device() -> None:
    fresh = small().llama_model.model.rotary_emb.inv_freq
    halved = small().bfloat16()
    assert not torch.equal(halved.llama_model.model.rotary_emb.inv_freq.float(), fresh)
    halved.restore_rotary()
    assert torch.equal(halved.llama_model.model.rotary_emb.inv_freq, fresh)


@pytest.mark.parametrize("config", [SMALL, PUBLISHED_7B])
def test_sizes_survive_json(config: VideoChatConfig) -> None:
    assert VideoChatConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(TypeError, match="depht"):
        VideoChatConfig.from_json(SMALL.to_json() | {"depht": 3})
