"""Finds VideoChat's four published files, and merges them in the order in which the original loads them."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoints.folder import TOKENIZER, read_config
from model.checkpoints.huggingface import llama_sizes, read_llama_config
from model.checkpoints.json_object import read_object
from model.checkpoints.published import (
    LLAMA_FOLDER,
    LLAMA_KEYS,
    Keys,
    PublishedModel,
    PublishedPart,
    Source,
    read_llama,
)
from model.families.videochat.network import QFormerConfig, VideoChatConfig
from model.families.videochat.vision import VisionConfig
from model.networks.llama import DecoderConfig
from model.weights import WeightsError

MODEL = "VideoChat"
VISION_FILE = "eva_vit_g.pth"
QFORMER_FILE = "blip2_pretrained_flant5xxl.pth"
VIDEOCHAT_FILES = ("videochat_7b.pth", "videochat_13b.pth", "videochat.pth")
BUFFERS = (r"Qformer\.bert\.embeddings\.position_ids", r"llama_model\..*\.rotary_emb\.inv_freq")
"""Buffers in the original's state dict; they follow from the sizes and are not loaded."""

_PUBLISHED_VISION = VisionConfig(image_size=224, patch_size=14, width=1408, depth=39, num_heads=16, num_global_blocks=8)
_PUBLISHED_QFORMER = QFormerConfig(width=768, depth=12, num_heads=12, mlp_width=3072)
PUBLISHED_7B = VideoChatConfig(
    num_frames=8,
    vision=_PUBLISHED_VISION,
    qformer=_PUBLISHED_QFORMER,
    decoder=DecoderConfig(vocab_size=32001, width=4096, depth=32, num_heads=32, mlp_width=11008),
)
PUBLISHED_13B = VideoChatConfig(
    num_frames=8,
    vision=_PUBLISHED_VISION,
    qformer=_PUBLISHED_QFORMER,
    decoder=DecoderConfig(vocab_size=32001, width=5120, depth=40, num_heads=40, mlp_width=13824),
)


PUBLISHED = PublishedModel(
    MODEL,
    PublishedPart(  # EVA ViT-g
        name="vision",
        files=(VISION_FILE,),
        keys=Keys(
            wanted=r"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|blocks\.\d+\..+",
            unused=r"(norm|fc_norm|head)\.(weight|bias)",
            prefix="visual_encoder.",
        ),
    ),
    PublishedPart(  # BLIP-2's first stage
        name="qformer",
        files=(QFORMER_FILE,),
        keys=Keys(wanted=r"Qformer\.bert\..+|query_tokens|ln_vision\.(weight|bias)", unused=r"t5_proj\..+"),
    ),
    PublishedPart(name="llama", folder=LLAMA_FOLDER, keys=Keys(wanted=LLAMA_KEYS, prefix="llama_model.")),
    PublishedPart(  # the parameters that VideoChat's own training added
        name="videochat",
        files=VIDEOCHAT_FILES,
        keys=Keys(
            wanted="|".join(
                (
                    r"visual_encoder\.gmhra(_cls_token|\..+)",
                    r"extra_query_tokens",
                    r"(ln_vision|llama_proj)\.(weight|bias)",
                    *BUFFERS,
                )
            )
        ),
    ),
    PublishedPart(name="config", is_optional=True),  # the sizes, if they are not the published ones
)


def find_published(folder: Path | None, named: Mapping[str, Path]) -> dict[str, Path]:
    """Find the parts of `PUBLISHED`.

    If `named` has no `config`, the sizes are read from a `config.json` in `folder` or beside the LLaMA's folder;
    without one, they are those of the published model.

    Raises:
        WeightsError: a part is neither named nor found, or `named` has an unknown part.
    """
    paths = PUBLISHED.find(folder, named)
    config = paths.get("config") or _find_config(folder, paths["llama"].resolve().parent)
    return paths if config is None else paths | {"config": config}


def read_published(
    folder: Path | None, named: Mapping[str, Path], *, ignored: Sequence[str]
) -> Source[VideoChatConfig]:
    """Find and merge the published model.

    Raises:
        WeightsError: see `find_published` and `merge`.
    """
    paths = find_published(folder, named)
    config, tensors = merge(paths, ignored=ignored)
    return Source(config=config, tensors=tensors, tokenizer=paths["llama"] / TOKENIZER, files=paths.values())


def read_sizes(path: Path) -> VideoChatConfig:
    """Read the sizes in a `config.json`: in our layout, or by part (`vit`, `qformer` and `llama`).

    Raises:
        WeightsError: the file is absent, or a size is missing, unknown or impossible.
    """
    return read_config(path, VideoChatConfig, model=MODEL, part="vit", by_part=_sizes_by_part)


def merge(paths: Mapping[str, Path], *, ignored: Sequence[str] = ()) -> tuple[VideoChatConfig, dict[str, Tensor]]:
    """Merge the files into the sizes and state dict of the original model: its names, each file's own dtype, mapped.

    Args:
        paths: from `find_published`.
        ignored: keys, as they are in the files, that the user knows to be harmless.

    Raises:
        WeightsError: a file is absent, damaged, of another model, or holds an unknown key.
    """
    videochat = PUBLISHED.read("videochat", paths, ignored=ignored)
    config = read_sizes(paths["config"]) if "config" in paths else _published_sizes(videochat, paths["videochat"])
    _check_videochat(videochat, paths["videochat"], config)
    _check_llama(paths["llama"], config.decoder)
    llama = read_llama(paths["llama"], vocab_size=config.decoder.vocab_size, hint=_llama_hint("vocab_size"))
    merged = (
        _without_last_block(PUBLISHED.read("vision", paths, ignored=ignored), config.vision)
        | PUBLISHED.read("qformer", paths, ignored=ignored)
        | PUBLISHED.select("llama", paths, llama, ignored=ignored)
        | videochat
    )
    _inflate(merged)
    return config, merged


def _find_config(*folders: Path | None) -> Path | None:
    paths = [folder / "config.json" for folder in folders if folder]
    return next((path for path in paths if path.is_file() and "vit" in read_object(path)), None)


def _published_sizes(videochat: Mapping[str, Tensor], path: Path) -> VideoChatConfig:
    projection = videochat.get("llama_proj.weight")
    for config in (PUBLISHED_7B, PUBLISHED_13B):
        if projection is not None and projection.shape == (config.decoder.width, config.qformer.width):
            return config
    raise WeightsError(
        f"{path.name} is neither the 7B nor the 13B VideoChat: llama_proj.weight is "
        f"{'missing' if projection is None else list(projection.shape)}. For other sizes name their config.json "
        "with --part config=FILE; the numbers of heads do not follow from the tensors."
    )


def _check_videochat(videochat: Mapping[str, Tensor], path: Path, config: VideoChatConfig) -> None:
    if config.vision.num_global_blocks and not any(key.startswith("visual_encoder.gmhra") for key in videochat):
        raise WeightsError(
            f"{path.name} holds no GMHRA (visual_encoder.gmhra.*), without which frames do not interact. It is not the "
            "file that VideoChat published as videochat_7b.pth or videochat_13b.pth."
        )
    projection = videochat.get("llama_proj.weight")
    if projection is not None and len(projection) != config.decoder.width:
        raise WeightsError(
            f"{path.name} projects to {len(projection)} values, but the language model is {config.decoder.width} "
            "wide. One is of the 7B model and the other of the 13B: take both of the same."
        )


def _check_llama(folder: Path, wanted: DecoderConfig) -> None:
    found = read_llama_config(folder)
    for field, ours, theirs in zip(fields(wanted), astuple(wanted), astuple(found), strict=True):
        if ours != theirs:
            raise WeightsError(
                f"{folder} holds another LLaMA than this VideoChat was trained with: {field.name} is {theirs}, "
                f"not {ours}. {_llama_hint(field.name)}"
            )


def _llama_hint(size: str) -> str:
    if size == "vocab_size":
        return (
            "The published 7B needs LLaMA-1 with vicuna-7b-delta-v0 applied, after a [PAD] row was added; the 13B "
            "needs stable-vicuna-13b. A bare LLaMA, a bare delta, LLaMA-2 and later Vicunas give garbage."
        )
    return "The 7B VideoChat goes with vicuna-7b-v0 and the 13B with stable-vicuna-13b, both LLaMA of 2023."


def _without_last_block(trunk: Mapping[str, Tensor], vision: VisionConfig) -> dict[str, Tensor]:
    """Leave out the published block after those that the model uses."""
    return {
        key: tensor for key, tensor in trunk.items() if not key.startswith(f"visual_encoder.blocks.{vision.depth}.")
    }


def _inflate(merged: dict[str, Tensor]) -> None:
    """Add the time axis of length 1 that the original's patch kernel has, and the file of the plain ViT lacks."""
    kernel = merged.get("visual_encoder.patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 4:
        merged["visual_encoder.patch_embed.proj.weight"] = kernel.unsqueeze(2)


def _sizes_by_part(values: Mapping[str, Any]) -> VideoChatConfig:
    vit, qformer, llama = values["vit"], values["qformer"], values["llama"]
    return VideoChatConfig(
        num_frames=values["num_frames"],
        vision=VisionConfig(
            image_size=vit["img_size"],
            patch_size=vit["patch_size"],
            width=vit["embed_dim"],
            depth=vit["depth"],
            num_heads=vit["num_heads"],
            num_global_blocks=vit["gmhra_layers"],
            mlp_ratio=vit["mlp_ratio"],
        ),
        qformer=QFormerConfig(
            width=qformer["hidden_size"],
            depth=qformer["num_hidden_layers"],
            num_heads=qformer["num_attention_heads"],
            mlp_width=qformer["intermediate_size"],
            num_queries=qformer["num_query_token"],
            num_extra_queries=qformer["extra_num_query_token"],
            cross_every=qformer["cross_attention_freq"],
        ),
        decoder=llama_sizes(llama),
    )
