"""CLIP's vision transformer gives what transformers' own model gives."""

import pytest
import torch
from transformers import CLIPVisionModelWithProjection

from model.networks.clip import (
    CLIP_LARGE,
    OPENAI_ACTIVATION,
    ClipEncoder,
    ClipImageEmbedder,
    ClipVisionConfig,
    clip_sizes,
    to_transformers,
)

SMALL = ClipVisionConfig(image_size=8, patch_size=4, width=16, depth=3, num_heads=2, mlp_width=24)


def reference(activation: str) -> CLIPVisionModelWithProjection:
    torch.manual_seed(3)
    config = to_transformers(SMALL, activation=activation, num_layers=SMALL.depth)
    config.projection_dim = 6
    return CLIPVisionModelWithProjection(config).eval()


@pytest.mark.parametrize("activation", [OPENAI_ACTIVATION, "gelu"])
@torch.no_grad()
def test_both_modules_give_the_outputs_of_the_whole_model(activation: str) -> None:
    whole, frames = reference(activation), torch.randn(2, 3, 8, 8)
    weights = {name.removeprefix("vision_model."): tensor for name, tensor in whole.state_dict().items()}
    embedder = ClipImageEmbedder(SMALL, activation=activation, projected_width=6)
    embedder.load_state_dict(weights)
    encoder = ClipEncoder(SMALL, activation=activation)
    unused = encoder.load_state_dict(weights, strict=False).unexpected_keys
    assert {name.rpartition(".layers.2.")[0] or name for name in unused} == {
        "encoder",
        "post_layernorm.weight",
        "post_layernorm.bias",
        "visual_projection.weight",
    }
    expected = whole(frames, output_hidden_states=True)
    torch.testing.assert_close(embedder(frames), expected.image_embeds)
    torch.testing.assert_close(encoder(frames), expected.hidden_states[-2])


@torch.no_grad()
def test_positions_that_the_meta_device_lost_are_restored() -> None:
    with torch.device("meta"):
        encoder = ClipEncoder(SMALL, activation=OPENAI_ACTIVATION)
    encoder.restore_buffers()
    assert encoder.embeddings.position_ids.tolist() == [[0, 1, 2, 3, 4]]


def test_sizes_are_read_by_their_published_names_and_another_epsilon_is_refused() -> None:
    values = to_transformers(CLIP_LARGE, activation="gelu", num_layers=24).to_dict()
    assert clip_sizes(values) == CLIP_LARGE
    with pytest.raises(ValueError, match="layer_norm_eps"):
        clip_sizes(values | {"layer_norm_eps": 1e-6})
