"""Video-ChatGPT (mbzuai-oryx): prompt, key map, sizes, and loading.

Prompt and numbers are those of the published demo, except that text of a user cannot imitate a turn or move the video.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from model.checkpoints.folder import Checkpoint, read_model, tokenizer_of
from model.checkpoints.json_object import read_object
from model.checkpoints.published import read_whole, to_convert
from model.engine.sampling_params import SamplingParams
from model.families.video_chatgpt.network import (
    NUM_TEMPORAL_TOKENS,
    VideoChatGPTConfig,
    VideoChatGPTNetwork,
)
from model.families.video_chatgpt.published import (
    PUBLISHED_7B,
    VIDEO_END,
    VIDEO_START,
    VIDEO_TOKENS,
    read_published,
    read_sizes,
)
from model.families.video_chatgpt.verification import verify_stages
from model.family import Family, blank, build_family, seeded_model
from model.memory_estimate import ValueCounts, count_values, num_parameters
from model.networks.clip import ClipVisionConfig, keys_beyond_encoder
from model.networks.llama import DecoderConfig
from model.quantization import Quantization
from model.role import Role
from model.text.conversation import Piece, Slot, SpecialToken
from model.text.sentencepiece import read_sentencepiece
from model.text.separated import SeparatedTemplate
from model.text.tokenizer import ByteTokenizer, Tokenizer, plain_tokenizer
from model.video.inputs import InputSpec
from model.video.pixels import PixelSpec
from model.video.spec import FrameSpec
from model.weights import KeyMap, WeightsError

__all__ = ["SIZES", "load", "read_source", "value_counts", "verify_stages"]

NAME = "video-chatgpt"
PUBLISHED_SAMPLING = SamplingParams(temperature=0.2, top_k=50, max_tokens=512)
"""The demo's settings. It does not set `top_k`; 50 was the default of transformers at the time."""

SIZES = {"7b": PUBLISHED_7B}
TINY = VideoChatGPTConfig(
    vision=ClipVisionConfig(image_size=56, patch_size=14, width=64, depth=3, num_heads=4, mlp_width=128),
    decoder=DecoderConfig(vocab_size=357, width=64, depth=2, num_heads=4, mlp_width=128),
    added_tokens=VIDEO_TOKENS,
)
TINY_SEED = 1
"""Seed of the small model's weights. It is untrained, and its answers are noise."""

SYSTEM = (
    "You are Video-ChatGPT, a large vision-language assistant. "
    "You are able to understand the video content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
    "Follow the instructions carefully and explain your answers in detail based on the provided video."
)
"""The published system text, which lacks a space before `Follow`; a session can replace it."""


def key_map(config: VideoChatGPTConfig) -> KeyMap:
    """Return the map from the names in the merged published files to ours; our own names are unchanged.

    The vision tower's last layer and last norm are published, but the model does not use their output.
    """
    return KeyMap(
        renames=(
            (r"^vision_model\.", "vision_tower."),
            (r"^model\.mm_projector\.", "mm_projector."),
            (r"^(model|lm_head)\.", r"language_model.\1."),
        ),
        ignored=(
            *keys_beyond_encoder(config.vision, prefix="vision_model."),
            r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
        ),
    )


class VideoChatGPTTemplate(SeparatedTemplate):
    """The published prompt, `video-chatgpt_v1`: `… USER: … ASSISTANT: …</s>USER: … ASSISTANT:`.

    The videos follow the first question, each on a line of its own; the original supports only one.
    """

    system = SYSTEM

    def question(self, text: str, num_clips: int) -> Iterator[Piece]:
        """Yield a question, and its videos between their start and end tokens."""
        yield text
        for number in range(num_clips):
            yield "\n"
            yield from (SpecialToken(VIDEO_START), Slot(number), SpecialToken(VIDEO_END))


def load(
    *,
    checkpoint: Path | None,
    device: torch.device | str,
    dtype: torch.dtype,
    quantization: Quantization | None,
    role: Role = "all",
) -> Family:
    """Load the model in a folder; None is a small, untrained model of seeded random values.

    The folder holds `config.json` with the sizes in the layout of `VideoChatGPTConfig.to_json`, `*.safetensors`
    with published names or ours, LLaMA's `tokenizer.model`, and perhaps `generation_config.json`. It can also be a
    folder of reference tensors, whose `config.json` has sizes under `clip` and `llm` and whose tokens are bytes.

    Raises:
        WeightsError, TokenizerError: the folder is incomplete, damaged or another model's, or the library that
            quantises is not installed.
    """
    if checkpoint is None:
        saved = seeded_model(VideoChatGPTNetwork, TINY, seed=TINY_SEED, sampling=PUBLISHED_SAMPLING)
        tokenizer = plain_tokenizer(added=VIDEO_TOKENS)
    else:
        saved = read_model(checkpoint, read_sizes=read_sizes, published_sampling=PUBLISHED_SAMPLING)
        tokenizer = _tokenizer(checkpoint, saved.config)
    family = build_family(
        saved,
        VideoChatGPTNetwork,
        tokenizer,
        name=NAME,
        key_map=key_map(saved.config),
        dtype=dtype,
        role=role,
        inputs=InputSpec(
            frames=FrameSpec(count=NUM_TEMPORAL_TOKENS, rule="video-chatgpt"),
            pixels=PixelSpec(size=saved.config.vision.image_size, fit="nearest"),
        ),
        template=VideoChatGPTTemplate(),
    )
    del saved  # so that the pages of a weight are released when it is quantised
    return family.move_to(device, quantization=quantization, role=role)


def read_source(
    folder: Path | None, *, parts: Mapping[str, Path], ignored: tuple[str, ...], dtype: torch.dtype | None
) -> tuple[Checkpoint, str]:
    """Find and merge the published files; return what `reeltalk convert` writes, and the identity of the sources.

    Args:
        folder: holds the published file and two folders, or a whole model in `weights.safetensors`.
        parts: paths elsewhere: `vision` (a folder), `llama` (a folder), `video` (a file).
        ignored: keys that the user knows to be harmless.
        dtype: what to cast to; None keeps each tensor's dtype.

    Raises:
        WeightsError, TokenizerError: the files do not make up one Video-ChatGPT model.
    """
    source = read_whole(folder, parts, read_sizes) or read_published(folder, parts, ignored=ignored)
    network = blank(VideoChatGPTNetwork, source.config)
    return to_convert(NAME, network, source, key_map=key_map(source.config), dtype=dtype)


def value_counts(size: str) -> ValueCounts:
    """Count the values of a published size, one of `SIZES`, without allocating memory."""
    config = SIZES[size]
    network = blank(VideoChatGPTNetwork, config)
    return count_values(
        network,
        modules={
            "CLIP": num_parameters(network.vision_tower),
            "mm_projector": num_parameters(network.mm_projector),
        },
        num_tokens=NUM_TEMPORAL_TOKENS * (config.vision.num_patches + 1),
        width=config.vision.width,
        mlp_width=config.vision.mlp_width,
    )


def _tokenizer(checkpoint: Path, config: VideoChatGPTConfig) -> Tokenizer:
    """Read LLaMA's tokenizer with the added tokens; reference tensors, whose sizes name token ids, use bytes."""
    special_ids = read_object(checkpoint / "config.json").get("special_token_ids")
    if special_ids is None:
        tokenizer = read_sentencepiece(tokenizer_of(checkpoint), added=config.added_tokens)
    else:
        tokenizer = ByteTokenizer(added=config.added_tokens)
        if {name: tokenizer.special_id(name) for name in config.added_tokens} != special_ids:
            raise WeightsError("The special tokens do not follow the bytes.")
    for name in VIDEO_TOKENS:
        tokenizer.special_id(name)
    return tokenizer
