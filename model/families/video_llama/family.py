"""Video-LLaMA (DAMO-NLP-SG), of 2023 and -2: key map, sizes, and loading. It sees frames and hears sound.

The file of a vision-only model loads as well; it answers from frames alone.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from model.checkpoints.folder import Checkpoint, read_model
from model.checkpoints.published import read_whole, to_convert
from model.engine.sampling_params import SamplingParams
from model.families.video_llama.network import VideoLlamaConfig, VideoLlamaNetwork
from model.families.video_llama.published import BUFFERS, PUBLISHED_7B, PUBLISHED_13B, read_published, read_sizes
from model.families.video_llama.template import Llama2Template, VicunaTemplate
from model.families.video_llama.verification import verify_stages
from model.family import Family, blank, build_family, seeded_model
from model.memory_estimate import ValueCounts, count_values, num_parameters
from model.networks.eva_vit import EvaViTConfig
from model.networks.imagebind_audio import ImageBindAudioConfig, key_renames
from model.networks.llama import DecoderConfig
from model.networks.qformer import KEY_RENAMES, QFormerConfig
from model.quantization import Quantization
from model.role import Role
from model.text.tokenizer import plain_tokenizer
from model.verification.inputs import read_tokenizer
from model.video.inputs import InputSpec, SoundSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec
from model.weights import KeyMap

__all__ = ["SIZES", "load", "read_source", "value_counts", "verify_stages"]

NAME = "video-llama"
KEY_MAP = KeyMap(
    renames=(*KEY_RENAMES, *key_renames("audio_encoder.")),
    ignored=BUFFERS,
)
"""Maps the original model's state dict to ours; our own names are unchanged."""

PUBLISHED_SAMPLING = SamplingParams(temperature=1.0, top_k=50, top_p=0.9, max_tokens=300)
"""The demo's settings. It does not set `top_k`; 50 was the default of transformers at the time."""

SIZES = {"7b": PUBLISHED_7B, "13b": PUBLISHED_13B}
_TINY_QFORMER = QFormerConfig(width=32, depth=2, num_heads=4, mlp_width=64, num_queries=4)
TINY = VideoLlamaConfig(
    num_frames=8,
    max_frames=32,
    vision=EvaViTConfig(image_size=28, patch_size=14, width=48, depth=2, num_heads=4),
    qformer=_TINY_QFORMER,
    video_qformer=QFormerConfig(width=32, depth=2, num_heads=4, mlp_width=64, num_queries=8, cross_every=1),
    style="vicuna",
    audio=ImageBindAudioConfig(width=48, depth=2, num_heads=4, out_width=40),
    audio_qformer=QFormerConfig(width=32, depth=2, num_heads=4, mlp_width=64, num_queries=4, cross_every=1),
    decoder=DecoderConfig(vocab_size=354, width=64, depth=2, num_heads=4, mlp_width=128),
)
TINY_SEED = 1
"""Seed of the small model's weights. It is untrained, and its answers are noise."""


def load(
    *,
    checkpoint: Path | None,
    device: torch.device | str,
    dtype: torch.dtype,
    quantization: Quantization | None,
    role: Role = "all",
) -> Family:
    """Load the model in a folder; None is a small, untrained model of seeded random values.

    The folder holds `config.json` with the sizes in the layout of `VideoLlamaConfig.to_json`, `*.safetensors` with
    published names or ours, LLaMA's `tokenizer.model`, and perhaps `generation_config.json`. It can also be a folder
    of reference tensors, whose `config.json` has sizes under `vit` and `llm`.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's, or the library that
            quantises is not installed.
    """
    if checkpoint is None:
        saved = seeded_model(VideoLlamaNetwork, TINY, seed=TINY_SEED, sampling=PUBLISHED_SAMPLING)
        tokenizer = plain_tokenizer()
    else:
        saved = read_model(checkpoint, read_sizes=read_sizes, published_sampling=PUBLISHED_SAMPLING)
        tokenizer = read_tokenizer(checkpoint)
    config = saved.config
    family = build_family(
        saved,
        VideoLlamaNetwork,
        tokenizer,
        name=NAME,
        key_map=KEY_MAP,
        dtype=dtype,
        role=role,
        inputs=inputs_of(config),
        template=Llama2Template() if config.style == "llama-2" else VicunaTemplate(),
    )
    del saved  # so that the pages of a weight are released when it is quantised
    return family.move_to(device, quantization=quantization, role=role)


def inputs_of(config: VideoLlamaConfig) -> InputSpec:
    """Return what a network of these sizes takes of a clip."""
    return InputSpec(
        frames=FrameSpec(count=config.num_frames, rule="distinct-left-edges"),
        pixels=PixelSpec(size=config.vision.image_size, fit="decoder"),
        max_frames=config.max_frames,
        sound=None if config.audio is None else SoundSpec(count=config.num_stretches),
    )


def read_source(
    folder: Path | None, *, parts: Mapping[str, Path], ignored: tuple[str, ...], dtype: torch.dtype | None
) -> tuple[Checkpoint, str]:
    """Find and merge the published files; return what `reeltalk convert` writes, and the identity of the sources.

    Args:
        folder: holds the published files and a LLaMA folder, or a whole model in `weights.safetensors`.
        parts: paths of files elsewhere: `vision`, `qformer`, `llama` (a folder), `video`, `audio`, `imagebind`,
            `config`.
        ignored: keys that the user knows to be harmless.
        dtype: what to cast to; None keeps each tensor's dtype.

    Raises:
        WeightsError, TokenizerError: the files do not make up one Video-LLaMA model.
    """
    source = read_whole(folder, parts, read_sizes) or read_published(folder, parts, ignored=ignored)
    return to_convert(NAME, blank(VideoLlamaNetwork, source.config), source, key_map=KEY_MAP, dtype=dtype)


def value_counts(size: str) -> ValueCounts:
    """Count the values of a published size, one of `SIZES`, without allocating memory."""
    config = SIZES[size]
    network = blank(VideoLlamaNetwork, config)
    names = {
        "visual encoder": ("visual_encoder", "ln_vision"),
        "Q-Former": ("qformer",),
        "video Q-Former": ("video_qformer", "video_frame_position_embedding"),
        "ImageBind audio": ("audio_encoder",),
        "audio Q-Former": ("audio_qformer", "audio_position_embedding"),
        "projections": ("llama_proj", "audio_llama_proj"),
    }
    modules = {
        name: sum(num_parameters(network.get_submodule(each)) for each in parts) for name, parts in names.items()
    }
    modules["query tokens"] = sum(parameter.numel() for parameter in network.parameters(recurse=False))
    return count_values(
        network,
        modules=modules,
        num_tokens=config.num_frames * (config.vision.grid**2 + 1),
        width=config.vision.width,
        mlp_width=config.vision.mlp_width,
    )
