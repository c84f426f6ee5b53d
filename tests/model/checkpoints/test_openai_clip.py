"""Reading OpenAI's CLIP, and giving its tensors Hugging Face's names."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoints.openai_clip import openai_clip_sizes, read_openai_clip
from model.networks.clip import OPENAI_ACTIVATION, ClipImageEmbedder, ClipVisionConfig
from model.weights import KeyMap, WeightsError, load_strict
from tests.model.checkpoints.torchscript_files import write_torchscript

SIZES = ClipVisionConfig(image_size=8, patch_size=4, width=64, depth=2, num_heads=1, mlp_width=96)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def published() -> dict[str, Tensor]:
    """A vision tower with a stub of the text half, under OpenAI's names."""
    tensors = {"visual.class_embedding": drawn(64), "visual.positional_embedding": drawn(5, 64)}
    tensors |= {"visual.proj": drawn(64, 24).half(), "visual.conv1.weight": drawn(64, 3, 4, 4).half()}
    for number in range(2):
        block = f"visual.transformer.resblocks.{number}"
        tensors |= {f"{block}.attn.in_proj_weight": drawn(192, 64), f"{block}.attn.in_proj_bias": drawn(192)}
        tensors |= {f"{block}.attn.out_proj.weight": drawn(64, 64), f"{block}.attn.out_proj.bias": drawn(64)}
        tensors |= {f"{block}.mlp.c_fc.weight": drawn(96, 64), f"{block}.mlp.c_fc.bias": drawn(96)}
        tensors |= {f"{block}.mlp.c_proj.weight": drawn(64, 96), f"{block}.mlp.c_proj.bias": drawn(64)}
        tensors |= {f"{block}.ln_{n}.{kind}": drawn(64) for n in (1, 2) for kind in ("weight", "bias")}
    tensors |= {f"visual.ln_{n}.{kind}": drawn(64) for n in ("pre", "post") for kind in ("weight", "bias")}
    text = {name: torch.ones(()) for name in ("logit_scale", "input_resolution", "context_length", "vocab_size")}
    text |= {"ln_final.weight": drawn(3), "token_embedding.weight": drawn(2, 3), "text_projection": drawn(3, 2)}
    return tensors | text | {"positional_embedding": drawn(3), "transformer.resblocks.0.ln_1.bias": drawn(3)}


def written(path: Path, **changes: Tensor | None) -> Path:
    tensors: Mapping[str, Tensor | None] = published() | {key.replace("__", "."): t for key, t in changes.items()}
    write_torchscript(path, {key: tensor for key, tensor in tensors.items() if tensor is not None})
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ViT-L-14.pt"


@torch.no_grad()
def test_the_tower_fills_the_network_and_attends_as_the_original_does(path: Path) -> None:
    tensors = read_openai_clip(written(path))
    assert openai_clip_sizes(path, tensors, num_heads=None) == SIZES
    embedder = ClipImageEmbedder(SIZES, activation=OPENAI_ACTIVATION, projected_width=24)
    load_strict(embedder, tensors, key_map=KeyMap(renames=((r"^vision_model\.", ""),)), dtype=torch.float32)
    # torch's own attention takes queries, keys and values in one matrix, as OpenAI's files have them.
    whole, first = published(), "visual.transformer.resblocks.0.attn."
    attention = torch.nn.MultiheadAttention(64, 1, batch_first=True)
    attention.load_state_dict({key.removeprefix(first): whole[key] for key in whole if key.startswith(first)})
    rows = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    expected, _ = attention(rows, rows, rows, need_weights=False)
    got, _ = embedder.encoder.layers[0].self_attn(rows, attention_mask=None)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(embedder.visual_projection.weight, whole["visual.proj"].T.float())


def test_a_width_that_openai_never_used_needs_the_number_of_heads(path: Path) -> None:
    tensors = read_openai_clip(written(path)) | {"vision_model.embeddings.patch_embedding.weight": drawn(48, 3, 4, 4)}
    with pytest.raises(WeightsError, match=r"does not say how many attention heads .* 48 is not a multiple of 64"):
        openai_clip_sizes(path, tensors, num_heads=None)
    assert openai_clip_sizes(path, tensors, num_heads=3).num_heads == 3


@pytest.mark.parametrize(
    ("key", "tensor", "said"),
    [
        ("more", torch.ones(1), "ViT-L-14.pt has a key that is not part of a CLIP: more"),
        ("visual__conv1__weight", None, "holds no CLIP with a vision transformer"),
        ("visual__conv1__weight", torch.ones(3), "holds no CLIP with a vision transformer"),
        ("visual__conv1__weight", torch.ones(64, 3, 0, 0), "an empty tensor"),
        ("visual__positional_embedding", None, "holds no CLIP with a vision transformer"),
        ("visual__positional_embedding", torch.ones(()), "holds no CLIP with a vision transformer"),
    ],
)
def test_an_archive_of_another_model_is_refused(path: Path, key: str, tensor: Tensor | None, said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        openai_clip_sizes(path, read_openai_clip(written(path, **{key: tensor})), num_heads=None)


@pytest.mark.parametrize("tensor", [torch.ones(()), torch.ones(4, 64)])
def test_queries_keys_and_values_that_cannot_be_split_are_unknown_to_the_network(path: Path, tensor: Tensor) -> None:
    key = "visual__transformer__resblocks__0__attn__in_proj_weight"
    tensors = read_openai_clip(written(path, **{key: tensor}))
    assert "vision_model.encoder.layers.0.self_attn.in_proj_weight" in tensors
