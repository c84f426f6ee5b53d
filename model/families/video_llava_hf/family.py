"""Video-LLaVA `-hf` (LanguageBind/Video-LLaVA-7B-hf): prompt, key map, sizes, and loading.

The conversion for transformers lost the attention over time, so it is another network than `video-llava`. Prompt and
numbers are those of the model's documentation, except that text of a user cannot imitate a turn.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from model.checkpoints.folder import Checkpoint, read_model
from model.checkpoints.published import read_whole, to_convert
from model.engine.sampling_params import SamplingParams
from model.families.video_llava_hf.network import VideoLlavaHFNetwork
from model.families.video_llava_hf.published import PUBLISHED_7B, read_published, read_sizes
from model.families.video_llava_hf.verification import verify_stages
from model.family import Family, blank, build_family, seeded_model
from model.memory_estimate import ValueCounts, count_values, num_parameters
from model.networks.clip import ClipVisionConfig, keys_beyond_encoder
from model.networks.llama import DecoderConfig
from model.networks.video_llava import VideoLlavaConfig
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

NAME = "video-llava-hf"
PUBLISHED_SAMPLING = SamplingParams(temperature=0.0, top_k=50, max_tokens=512)
"""Greedy, as in the model's documentation. `top_k` is transformers' default, for sessions that sample. The length is
chosen here."""

SIZES = {"7b": PUBLISHED_7B}
TINY = VideoLlavaConfig(
    vision=ClipVisionConfig(image_size=28, patch_size=14, width=64, depth=3, num_heads=4, mlp_width=128),
    activation=PUBLISHED_7B.activation,
    num_frames=PUBLISHED_7B.num_frames,
    decoder=DecoderConfig(vocab_size=354, width=64, depth=2, num_heads=4, mlp_width=128),
)
TINY_SEED = 1
"""Seed of the small model's weights. It is untrained, and its answers are noise."""


def key_map(config: VideoLlavaConfig) -> KeyMap:
    """Return the map from the published names to ours; our own names are unchanged.

    The video tower's last layer and last norm are published, but the model does not use their output. Videos do not
    need the image tower.
    """
    return KeyMap(
        renames=(
            (r"^video_tower\.vision_model\.", "video_tower."),
            (r"^multi_modal_projector\.linear_1\.", "mm_projector.0."),
            (r"^multi_modal_projector\.linear_2\.", "mm_projector.2."),
        ),
        ignored=(
            r"image_tower\.vision_model\..+",
            *keys_beyond_encoder(config.vision, prefix="video_tower.vision_model."),
            r"language_model\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
        ),
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

    The folder holds `config.json` with the sizes in the layout of `VideoLlavaConfig.to_json`, `*.safetensors` with
    published names or ours, LLaMA's `tokenizer.model`, and perhaps `generation_config.json`. It can also be a folder
    of reference tensors, whose `config.json` has sizes under `vision` and `llm`.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's, or the library that
            quantises is not installed.
    """
    if checkpoint is None:
        saved = seeded_model(VideoLlavaHFNetwork, TINY, seed=TINY_SEED, sampling=PUBLISHED_SAMPLING)
        tokenizer = plain_tokenizer()
    else:
        saved = read_model(checkpoint, read_sizes=read_sizes, published_sampling=PUBLISHED_SAMPLING)
        tokenizer = read_tokenizer(checkpoint)
    num_frames = saved.config.num_frames
    family = build_family(
        saved,
        VideoLlavaHFNetwork,
        tokenizer,
        name=NAME,
        key_map=key_map(saved.config),
        dtype=dtype,
        role=role,
        inputs=InputSpec(
            frames=FrameSpec(count=num_frames, rule="left-edges"),
            pixels=PixelSpec(size=saved.config.vision.image_size, fit="crop", crop_rounding="down"),
            min_frames=num_frames,
            max_frames=num_frames,
        ),
        template=SeparatedTemplate(),
    )
    del saved  # so that the pages of a weight are released when it is quantised
    return family.move_to(device, quantization=quantization, role=role)


def read_source(
    folder: Path | None, *, parts: Mapping[str, Path], ignored: tuple[str, ...], dtype: torch.dtype | None
) -> tuple[Checkpoint, str]:
    """Find the published files; return what `reeltalk convert` writes, and the identity of the sources.

    Args:
        folder: of Video-LLaVA-7B-hf, or one that holds it, or a whole model in `weights.safetensors`.
        parts: the path elsewhere: `llava` (a folder).
        ignored: keys that the user knows to be harmless.
        dtype: what to cast to; None keeps each tensor's dtype.

    Raises:
        WeightsError, TokenizerError: the files do not make up one Video-LLaVA -hf model.
    """
    source = read_whole(folder, parts, read_sizes) or read_published(folder, parts, ignored=ignored)
    network = blank(VideoLlavaHFNetwork, source.config)
    return to_convert(NAME, network, source, key_map=key_map(source.config), dtype=dtype)


def value_counts(size: str) -> ValueCounts:
    """Count the values of a published size, one of `SIZES`, without allocating memory."""
    config = SIZES[size]
    network = blank(VideoLlavaHFNetwork, config)
    return count_values(
        network,
        modules={
            "video tower": num_parameters(network.video_tower),
            "mm_projector": num_parameters(network.mm_projector),
        },
        num_tokens=config.num_frames * config.num_frame_tokens,
        width=config.vision.width,
        mlp_width=config.vision.mlp_width,
    )
