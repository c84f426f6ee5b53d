"""Finds Video-LLaMA's six published files, and merges them in the order in which the original loads them.

A model without sound is published as four of them; the audio branch and ImageBind are taken together or not at all.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoints.folder import TOKENIZER, read_config
from model.checkpoints.huggingface import llama_sizes, read_llama_config
from model.checkpoints.published import (
    LLAMA_FOLDER,
    LLAMA_KEYS,
    Keys,
    PublishedModel,
    PublishedPart,
    Source,
    read_llama,
)
from model.families.video_llama.network import Style, VideoLlamaConfig
from model.networks.eva_vit import EvaViTConfig
from model.networks.imagebind_audio import ImageBindAudioConfig
from model.networks.llama import DecoderConfig
from model.networks.qformer import QFormerConfig
from model.weights import WeightsError

MODEL = "Video-LLaMA"
VICUNA_ROWS = 32001
"""Embedding rows of Vicuna of the first version, which has a [PAD]; Llama-2 has one less."""
BUFFERS = (
    r"(video_|audio_)?Qformer\.bert\.embeddings\.position_ids",
    r"llama_model\..*\.rotary_emb\.inv_freq",
)
"""Buffers in the original's state dict; they follow from the sizes and are not loaded."""
_SAVED_BUFFERS = "|".join((*BUFFERS, r"audio_encoder\..+\.(log_logit_scale|mask)"))
"""Both files of Video-LLaMA hold the buffers of the whole model."""
_QFORMER = r"Qformer\.bert\.(embeddings\.LayerNorm|encoder\.layer\.\d+\.(attention|crossattention|\w+_query))\..+"
_MODULES = "(preprocessors|trunks|heads|postprocessors)"

_LLAMA_2_7B = DecoderConfig(
    vocab_size=32000, width=4096, depth=32, num_heads=32, mlp_width=11008, max_positions=4096, rms_eps=1e-5
)
_FRAME_QFORMER = QFormerConfig(width=768, depth=12, num_heads=12, mlp_width=3072)
PUBLISHED_7B = VideoLlamaConfig(
    num_frames=8,
    max_frames=32,
    vision=EvaViTConfig(image_size=224, patch_size=14, width=1408, depth=39, num_heads=16),
    qformer=_FRAME_QFORMER,
    video_qformer=replace(_FRAME_QFORMER, depth=2, cross_every=1),
    style="llama-2",
    audio=ImageBindAudioConfig(width=768, depth=12, num_heads=12, out_width=1024),
    audio_qformer=replace(_FRAME_QFORMER, depth=2, cross_every=1, num_queries=8),
    decoder=_LLAMA_2_7B,
)
PUBLISHED_13B = replace(PUBLISHED_7B, decoder=replace(_LLAMA_2_7B, width=5120, depth=40, num_heads=40, mlp_width=13824))

_LLAMA_2_FILES = tuple(f"LLaMA_2_{size}_{stage}.pth" for size in ("13B", "7B") for stage in ("Pretrained", "Finetuned"))
PUBLISHED = PublishedModel(
    MODEL,
    PublishedPart(  # EVA ViT-g
        name="vision",
        files=("eva_vit_g.pth",),
        keys=Keys(
            wanted=r"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|blocks\.\d+\..+",
            unused=r"(norm|fc_norm|head)\.(weight|bias)",
            prefix="visual_encoder.",
        ),
    ),
    PublishedPart(  # BLIP-2's first stage
        name="qformer",
        files=("blip2_pretrained_flant5xxl.pth",),
        keys=Keys(
            wanted=rf"{_QFORMER}|query_tokens|ln_vision\.(weight|bias)",
            unused=r"(t5_proj|visual_encoder|Qformer)\..+",
        ),
    ),
    PublishedPart(name="llama", folder=LLAMA_FOLDER, keys=Keys(wanted=LLAMA_KEYS, prefix="llama_model.")),
    PublishedPart(
        name="video",
        files=(
            *("pretrain-vicuna13b.pth", "finetune-vicuna13b-v2.pth"),
            *("pretrain_vicuna7b-v2.pth", "finetune-vicuna7b-v2.pth"),
            *(f"VL_{name}" for name in _LLAMA_2_FILES),
        ),
        keys=Keys(
            wanted=rf"video_{_QFORMER}|video_query_tokens|(llama_proj|video_frame_position_embedding)\.(weight|bias)",
            unused=_SAVED_BUFFERS,
        ),
    ),
    PublishedPart(
        name="audio",
        files=(
            *("pretrain_vicuna7b_audiobranch.pth", "finetune_vicuna7b_audiobranch.pth"),
            *(f"AL_{name}" for name in _LLAMA_2_FILES),
        ),
        keys=Keys(
            wanted=rf"audio_{_QFORMER}|audio_query_tokens|(audio_llama_proj|audio_position_embedding)\.(weight|bias)",
            unused=_SAVED_BUFFERS,
        ),
        is_optional=True,
    ),
    PublishedPart(
        name="imagebind",
        files=("imagebind_huge.pth",),
        keys=Keys(
            wanted=rf"modality_{_MODULES}\.audio\..+",
            unused=rf"modality_{_MODULES}\.(vision|text|depth|thermal|imu)\..+",
            prefix="audio_encoder.",
        ),
        is_optional=True,
    ),
    PublishedPart(name="config", is_optional=True),  # the sizes, if they are not the published ones
)


def read_published(
    folder: Path | None, named: Mapping[str, Path], *, ignored: Sequence[str]
) -> Source[VideoLlamaConfig]:
    """Find and merge the published model; names and dtypes of the tensors are those of the files.

    Args:
        folder: of the published files and a LLaMA's folder.
        named: paths elsewhere: `vision`, `qformer`, `llama` (a folder), `video`, `audio`, `imagebind`, `config`.
        ignored: keys, as they are in the files, that the user knows to be harmless.

    Raises:
        WeightsError: a part is absent, damaged or another model's, or holds an unknown key.
    """
    paths = PUBLISHED.find(folder, named)
    _check_sound(paths)
    video = PUBLISHED.read("video", paths, ignored=ignored)
    config = _sizes(paths, video)
    llama = read_llama(paths["llama"], vocab_size=config.decoder.vocab_size, hint=_HINT)
    tensors = {
        **_without_last_block(PUBLISHED.read("vision", paths, ignored=ignored), config.vision),
        **PUBLISHED.read("qformer", paths, ignored=ignored),
        **PUBLISHED.select("llama", paths, llama, ignored=ignored),
        **video,
    }
    for part in ("audio", "imagebind") if "audio" in paths else ():
        tensors |= PUBLISHED.read(part, paths, ignored=ignored)
    if "audio" in paths:
        _check_width("audio", "audio_llama_proj.weight", tensors, paths, config)
    return Source(config=config, tensors=tensors, tokenizer=paths["llama"] / TOKENIZER, files=paths.values())


def read_sizes(path: Path) -> VideoLlamaConfig:
    """Read the sizes in a `config.json`: in our layout, or by part (`vit`, `qformer`, `audio`, `llm`, …).

    Raises:
        WeightsError: the file is absent, or a size is missing, unknown or impossible.
    """
    return read_config(path, VideoLlamaConfig, model=MODEL, part="vit", by_part=_sizes_by_part)


_HINT = "Video-LLaMA-2 needs Llama-2-chat; the models of 2023 need Vicuna v0 with the row of its [PAD]."


def _check_sound(paths: Mapping[str, Path]) -> None:
    """Refuse one of the two files for sound without the other."""
    for part, other in (("audio", "imagebind"), ("imagebind", "audio")):
        if part in paths and other not in paths:
            raise WeightsError(
                f"{paths[part].name} is one of the two files for sound; name the other one with --part {other}=FILE, "
                "or take both away for a model that does not hear."
            )


def _sizes(paths: Mapping[str, Path], video: Mapping[str, Tensor]) -> VideoLlamaConfig:
    """Return the sizes: of the file that the user names, or the published ones, around the LLaMA that is there."""
    decoder = read_llama_config(paths["llama"])
    if "config" in paths:
        config = replace(read_sizes(paths["config"]), decoder=decoder)
    else:
        _check_published(paths["video"], video, decoder)
        config = replace(PUBLISHED_7B, decoder=decoder, style=_style(decoder.vocab_size))
    if "audio" not in paths:
        config = replace(config, audio=None, audio_qformer=None)
    _check_style(paths["video"], decoder)
    _check_width("video", "llama_proj.weight", video, paths, config)
    return config


def _check_published(path: Path, video: Mapping[str, Tensor], decoder: DecoderConfig) -> None:
    """Refuse sizes that are not published, because not all of them follow from the tensors."""
    projection = video.get("llama_proj.weight")
    widths = None if projection is None else tuple(projection.shape)
    published = {(config.decoder.width, config.video_qformer.width) for config in (PUBLISHED_7B, PUBLISHED_13B)}
    if widths is not None and widths not in published:
        raise WeightsError(
            f"{path.name} is neither the 7B nor the 13B {MODEL}: llama_proj.weight is {list(widths)} beside a LLaMA "
            f"{decoder.width} wide. For other sizes name their config.json with --part config=FILE."
        )


def _check_style(path: Path, decoder: DecoderConfig) -> None:
    """Refuse the file of one generation with the LLaMA of the other; shapes do not tell them apart."""
    is_vicuna, is_llama_2 = "vicuna" in path.name, "LLaMA_2" in path.name
    if (is_llama_2 and decoder.vocab_size == VICUNA_ROWS) or (is_vicuna and decoder.vocab_size == VICUNA_ROWS - 1):
        raise WeightsError(f"{path.name} was trained with another LLaMA of {decoder.vocab_size} rows. {_HINT}")


def _check_width(
    part: str, key: str, tensors: Mapping[str, Tensor], paths: Mapping[str, Path], config: VideoLlamaConfig
) -> None:
    """Refuse a file whose projection is as wide as another LLaMA."""
    projection = tensors.get(key)
    if projection is None:
        raise WeightsError(f"{paths[part].name} lacks {key}; it is not a file of Video-LLaMA, or not a whole one.")
    if len(projection) != config.decoder.width:
        raise WeightsError(
            f"{paths[part].name} projects to {len(projection)} values, but the language model is "
            f"{config.decoder.width} wide. One is of the 7B model and the other of the 13B: take both of the same."
        )


def _style(vocab_size: int) -> Style:
    return "vicuna" if vocab_size == VICUNA_ROWS else "llama-2"


def _without_last_block(trunk: Mapping[str, Tensor], vision: EvaViTConfig) -> dict[str, Tensor]:
    """Leave out the published block after those that the model uses."""
    unused = re.compile(rf"visual_encoder\.blocks\.{vision.depth}\..+")
    return {key: tensor for key, tensor in trunk.items() if not unused.fullmatch(key)}


def _sizes_by_part(values: Mapping[str, Any]) -> VideoLlamaConfig:
    vit, qformer, audio = values["vit"], values["qformer"], values.get("audio")
    frames = _qformer(qformer, qformer)
    decoder = llama_sizes(values["llm"])
    return VideoLlamaConfig(
        num_frames=values["frames"],
        max_frames=values["video_qformer"]["max_frame_pos"],
        vision=EvaViTConfig(
            image_size=vit["img_size"],
            patch_size=vit["patch_size"],
            width=vit["embed_dim"],
            depth=vit["depth"],
            num_heads=vit["num_heads"],
            mlp_ratio=vit["mlp_ratio"],
        ),
        qformer=frames,
        video_qformer=_qformer(qformer, values["video_qformer"]),
        style=values.get("style", _style(decoder.vocab_size)),
        audio=None if audio is None else _audio(audio),
        audio_qformer=None if audio is None else _qformer(qformer, audio["qformer"]),
        num_stretches=8 if audio is None else audio["clips"],
        decoder=decoder,
    )


def _qformer(widths: Mapping[str, Any], values: Mapping[str, Any]) -> QFormerConfig:
    """Return the sizes of a Q-Former; all of them have the widths and heads of the first."""
    return QFormerConfig(
        width=widths["hidden_size"],
        depth=values["num_hidden_layers"],
        num_heads=widths["num_attention_heads"],
        mlp_width=widths["intermediate_size"],
        num_queries=values["num_query_token"],
        cross_every=values["cross_attention_freq"],
    )


def _audio(values: Mapping[str, Any]) -> ImageBindAudioConfig:
    return ImageBindAudioConfig(
        width=values["audio_embed_dim"],
        depth=values["audio_num_blocks"],
        num_heads=values["audio_num_heads"],
        out_width=values["out_embed_dim"],
        num_bins=values["audio_num_mel_bins"],
        num_frames=values["audio_target_len"],
        kernel=values["kernel"],
        stride=values["stride"],
    )
