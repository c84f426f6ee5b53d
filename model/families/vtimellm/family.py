"""VTimeLLM (huangb23): prompt, key map, sizes, and loading.

Prompt and numbers are those of the published demo, except that text of a user cannot imitate a turn or move the video.
Answers name times as two digits, 00 to 99, of the clip's hundredths (`time_axis`).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from model.checkpoints.folder import Checkpoint, read_model
from model.checkpoints.published import read_whole, to_convert
from model.engine.sampling_params import SamplingParams
from model.families.vtimellm.network import NUM_FRAMES, VTimeLLMConfig, VTimeLLMNetwork
from model.families.vtimellm.published import read_published
from model.families.vtimellm.reference import merge_stages
from model.families.vtimellm.sizes import PUBLISHED_7B, read_sizes
from model.families.vtimellm.verification import verify_stages
from model.family import Family, blank, build_family, seeded_model
from model.memory_estimate import ValueCounts, count_values, num_parameters
from model.networks.clip import ClipVisionConfig
from model.networks.llama import DecoderConfig
from model.quantization import Quantization
from model.role import Role
from model.text.separated import SeparatedTemplate
from model.text.tokenizer import plain_tokenizer
from model.verification.inputs import read_tokenizer
from model.video.inputs import InputSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec
from model.weights import KeyMap

__all__ = ["SIZES", "load", "read_source", "value_counts", "verify_stages"]

NAME = "vtimellm"
PUBLISHED_SAMPLING = SamplingParams(temperature=0.05, top_k=50, top_p=0.6, max_tokens=1024)
"""The demo's temperature and length; `top_p` is from Vicuna's `generation_config.json`, which the demo leaves in force,
and `top_k` was the default of transformers at the time."""

SIZES = {"7b": PUBLISHED_7B}
TINY = VTimeLLMConfig(
    vision=ClipVisionConfig(image_size=56, patch_size=14, width=64, depth=2, num_heads=4, mlp_width=128),
    projected_width=48,
    decoder=DecoderConfig(vocab_size=354, width=64, depth=2, num_heads=4, mlp_width=128, rms_eps=1e-5),
)
TINY_SEED = 1
"""Seed of the small model's weights. It is untrained, and its answers are noise."""

KEY_MAP = KeyMap(
    renames=(
        (r"^vision_model\.", "vision_tower."),
        (r"^visual_projection\.", "vision_tower.visual_projection."),
        (r"^model\.mm_projector\.", "mm_projector."),
        (r"^(model|lm_head)\.", r"language_model.\1."),
    ),
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)
"""The map from the names in the merged published files to ours; our own names are unchanged."""


class VTimeLLMTemplate(SeparatedTemplate):
    """The published prompt, `vicuna_v1`, with the videos before the first question; the original takes only one."""

    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )


def load(
    *,
    checkpoint: Path | None,
    device: torch.device | str,
    dtype: torch.dtype,
    quantization: Quantization | None,
    role: Role = "all",
) -> Family:
    """Load the model in a folder; None is a small, untrained model of seeded random values.

    The folder holds `config.json` with the sizes in the layout of `VTimeLLMConfig.to_json`, `*.safetensors` with
    published names or ours, LLaMA's `tokenizer.model`, and perhaps `generation_config.json`. It can also be a folder of
    reference tensors, whose `config.json` has sizes under `clip`, `llm` and `lora`.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's, or the library that
            quantises is not installed.
    """
    if checkpoint is None:
        saved = seeded_model(VTimeLLMNetwork, TINY, seed=TINY_SEED, sampling=PUBLISHED_SAMPLING)
        tokenizer = plain_tokenizer()
    else:
        saved = read_model(checkpoint, read_sizes=read_sizes, published_sampling=PUBLISHED_SAMPLING)
        saved = replace(saved, tensors=merge_stages(saved.tensors, checkpoint))
        tokenizer = read_tokenizer(checkpoint)
    family = build_family(
        saved,
        VTimeLLMNetwork,
        tokenizer,
        name=NAME,
        key_map=KEY_MAP,
        dtype=dtype,
        role=role,
        inputs=InputSpec(
            frames=FrameSpec(count=NUM_FRAMES, rule="linspace"),
            pixels=PixelSpec(size=saved.config.vision.image_size, fit="bicubic"),
            min_frames=NUM_FRAMES,
            max_frames=NUM_FRAMES,
        ),
        template=VTimeLLMTemplate(),
        time_axis=NUM_FRAMES,
    )
    del saved  # so that the pages of a weight are released when it is quantised
    return family.move_to(device, quantization=quantization, role=role)


def read_source(
    folder: Path | None, *, parts: Mapping[str, Path], ignored: tuple[str, ...], dtype: torch.dtype | None
) -> tuple[Checkpoint, str]:
    """Find and merge the published files; return what `reeltalk convert` writes, and the identity of the sources.

    Args:
        folder: holds the published folders, or a whole model in `weights.safetensors`.
        parts: paths elsewhere: `vision` (a file or a folder), `llama` (a folder), `projector` (a file), `stage2` and
            `stage3` (folders).
        ignored: keys that the user knows to be harmless.
        dtype: what to cast to; None keeps each tensor's dtype.

    Raises:
        WeightsError, TokenizerError: the files do not make up one VTimeLLM model.
    """
    source = read_whole(folder, parts, read_sizes)
    if source is None:
        source = read_published(folder, parts, ignored=ignored, dtype=dtype)
    else:
        assert folder is not None, "a whole model is in a folder"
        source = replace(source, tensors=merge_stages(source.tensors, folder, dtype=dtype))
    return to_convert(NAME, blank(VTimeLLMNetwork, source.config), source, key_map=KEY_MAP, dtype=dtype)


def value_counts(size: str) -> ValueCounts:
    """Count the values of a published size, one of `SIZES`, without allocating memory."""
    config = SIZES[size]
    network = blank(VTimeLLMNetwork, config)
    return count_values(
        network,
        modules={
            "CLIP": num_parameters(network.vision_tower),
            "mm_projector": num_parameters(network.mm_projector),
        },
        num_tokens=NUM_FRAMES * (config.vision.num_patches + 1),
        width=config.vision.width,
        mlp_width=config.vision.mlp_width,
    )
