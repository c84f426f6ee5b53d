"""Reads the vision tower of a CLIP as OpenAI published it, and gives its tensors Hugging Face's names."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.torchscript import read_torchscript
from model.checkpoints.values import check_values
from model.networks.clip import ClipVisionConfig
from model.weights import WeightsError

HEAD_WIDTH = 64
"""The width of an attention head in every CLIP of OpenAI's; the archive does not hold the number of heads."""

_RENAMES = (
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^conv1\.weight$", "embeddings.patch_embedding.weight"),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_UNUSED = re.compile(
    r"transformer\..+|token_embedding\.weight|ln_final\.(weight|bias)|positional_embedding|text_projection|logit_scale"
    r"|input_resolution|context_length|vocab_size"
)
"""The text half, and numbers that follow from the shapes."""


def read_openai_clip(path: Path) -> dict[str, Tensor]:
    """Return the vision tower in an archive such as `ViT-L-14.pt`, under Hugging Face's names and in the file's dtypes.

    The names begin with `vision_model.`, except `visual_projection.weight`.

    Raises:
        WeightsError: the file is absent or damaged, holds something other than a CLIP with a vision transformer, or a
            tensor is not one of finite numbers in floating point.
    """
    tensors: dict[str, Tensor] = {}
    for key, tensor in read_torchscript(path).items():
        if key.startswith("visual."):
            check_values({key: tensor}, file=path.name)
            tensors |= _renamed(key.removeprefix("visual."), tensor)
        elif not _UNUSED.fullmatch(key):
            raise WeightsError(f"{path.name} has a key that is not part of a CLIP: {key}.")
    return tensors


def openai_clip_sizes(path: Path, tensors: Mapping[str, Tensor], *, num_heads: int | None) -> ClipVisionConfig:
    """Return the sizes of a vision tower from the shapes of its tensors.

    Args:
        path: of the archive, for error messages.
        tensors: from `read_openai_clip`.
        num_heads: attention heads; None is one for each 64 values of width, as in OpenAI's CLIPs.

    Raises:
        WeightsError: a tensor is missing, a size is impossible, or the width is not a multiple of 64 and `num_heads`
            is None.
    """
    try:
        width, _, patch_size, _ = tensors["vision_model.embeddings.patch_embedding.weight"].shape
        num_positions = len(tensors["vision_model.embeddings.position_embedding.weight"])
        mlp_width = len(tensors["vision_model.encoder.layers.0.mlp.fc1.weight"])
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{path.name} holds no CLIP with a vision transformer ({error}).") from error
    if not (width and patch_size and num_positions > 1):
        raise WeightsError(f"{path.name} holds no CLIP with a vision transformer: it has an empty tensor.")
    if num_heads is None and width % HEAD_WIDTH:
        raise WeightsError(
            f"{path.name} does not say how many attention heads it has, and its width of {width} is not a multiple of "
            f"{HEAD_WIDTH}; put the same model's folder in Hugging Face's layout beside it, whose config.json says it."
        )
    layers = {key.split(".")[3] for key in tensors if key.startswith("vision_model.encoder.layers.")}
    try:
        return ClipVisionConfig(
            image_size=math.isqrt(num_positions - 1) * patch_size,
            patch_size=patch_size,
            width=width,
            depth=len(layers),
            num_heads=num_heads or width // HEAD_WIDTH,
            mlp_width=mlp_width,
        )
    except ValueError as error:
        raise WeightsError(f"{path.name} holds no CLIP with a vision transformer ({error}).") from error


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return one tensor of the vision tower under its new name or, for queries, keys and values in one, three."""
    if name == "proj" and tensor.ndim == 2:
        return {"visual_projection.weight": tensor.T}
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    name = f"vision_model.{name}"
    before, joined, kind = name.partition("self_attn.in_proj_")
    if not joined or tensor.ndim == 0 or len(tensor) % 3:
        return {name: tensor}
    return {
        f"{before}self_attn.{half}_proj.{kind}": third
        for half, third in zip("qkv", torch.chunk(tensor, 3), strict=True)
    }
