"""Finds the published folders of the original Video-LLaVA, and checks that they belong together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.clip import check_depth
from model.checkpoints.folder import TOKENIZER, read_config
from model.checkpoints.huggingface import read_llama_config
from model.checkpoints.json_object import read_object
from model.checkpoints.published import (
    LLAMA_KEYS,
    FolderKind,
    Keys,
    PublishedModel,
    PublishedPart,
    Source,
    read_llama,
)
from model.families.video_llava.network import ACTIVATION
from model.networks.clip import CLIP_LARGE, ClipVisionConfig, clip_sizes
from model.networks.llama import DecoderConfig
from model.networks.sizes import shown
from model.networks.video_llava import ACTIVATIONS, VideoLlavaConfig
from model.text.sentencepiece import read_sentencepiece
from model.verification.video_llava import reference_sizes
from model.weights import WeightsError

MODEL = "Video-LLaVA"
TOWER_FOLDER = "LanguageBind_Video_merge"
TOWER, IMAGE_TOWER = "model.video_tower.video_tower.", "model.image_tower.image_tower."
PUBLISHED_7B = VideoLlavaConfig(
    vision=CLIP_LARGE,
    activation=ACTIVATION,
    num_frames=8,
    decoder=DecoderConfig(
        vocab_size=32000, width=4096, depth=32, num_heads=32, mlp_width=11008, max_positions=4096, rms_eps=1e-5
    ),
)
"""Sizes of LanguageBind/Video-LLaVA-7B: LanguageBind's ViT-L/14 and Vicuna 7B v1.5."""

_PATCHES, _FRAMES = f"{TOWER}embeddings.patch_embedding.weight", f"{TOWER}encoder.layers.0.temporal_embedding"
_PUBLISHED_PATCHES = (CLIP_LARGE.width, 3, CLIP_LARGE.patch_size, CLIP_LARGE.patch_size)
_SETTINGS = {
    "mm_vision_select_layer": -2,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
}
_HF_HINT = "Video-LLaVA-7B-hf is the family video-llava-hf"
_TOWER_HINT = f"Name the folder of {TOWER_FOLDER} with --part video_tower=FOLDER."
_BFLOAT16_STEP = 2**-7


def _is_video_llava(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and "mm_video_tower" in read_object(path)


def _is_video_tower(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and _vision_config(path).get("add_time_attn") is True


PUBLISHED = PublishedModel(
    MODEL,
    PublishedPart(
        name="llava",
        folder=FolderKind(
            description=f"Video-LLaVA-7B folder (config.json with mm_video_tower, {TOKENIZER}, weights; {_HF_HINT})",
            matches=_is_video_llava,
        ),
        keys=Keys(
            wanted=rf"{TOWER}.+|model\.mm_projector\.[02]\.(weight|bias)|{LLAMA_KEYS}", unused=rf"{IMAGE_TOWER}.+"
        ),
    ),
    PublishedPart(  # names the heads and the activation; its tensors are in the other part too
        name="video_tower",
        folder=FolderKind(
            description=f"{TOWER_FOLDER} folder (config.json with add_time_attn)", matches=_is_video_tower
        ),
        keys=Keys(wanted=r"vision_model\..+", unused=r"text_model\..+|(visual|text)_projection\.weight|logit_scale"),
        is_optional=True,
    ),
)


def read_published(
    folder: Path | None, named: Mapping[str, Path], *, ignored: Sequence[str]
) -> Source[VideoLlavaConfig]:
    """Find and check the published model.

    Args:
        folder: holds the published folders, or is Video-LLaVA-7B itself, perhaps with LanguageBind_Video_merge beside.
        named: paths of parts elsewhere.
        ignored: keys, as they are in the files, that the user knows to be harmless.

    Raises:
        WeightsError: a part is not found, or see `merge`.
        TokenizerError: the tokenizer cannot be used.
    """
    if folder is not None and "llava" not in named and _is_video_llava(folder):
        beside = folder.absolute().parent / TOWER_FOLDER
        tower = {"video_tower": beside} if beside.is_dir() else {}
        named, folder = {"llava": folder, **tower, **named}, None
    paths = PUBLISHED.find(folder, named)
    config, tensors = merge(paths, ignored=ignored)
    return Source(config=config, tensors=tensors, tokenizer=paths["llava"] / TOKENIZER, files=paths.values())


def read_sizes(path: Path) -> VideoLlavaConfig:
    """Read the sizes in a `config.json`: in our layout, or by part (`vision` and `llm`).

    Raises:
        WeightsError: the file is absent, or a size is missing, unknown or another model's.
    """
    return read_config(
        path,
        VideoLlavaConfig,
        model=MODEL,
        part="llm",
        by_part=lambda values: reference_sizes(values, has_temporal_attention=True),
    )


def merge(paths: Mapping[str, Path], *, ignored: Sequence[str] = ()) -> tuple[VideoLlavaConfig, dict[str, Tensor]]:
    """Return the sizes, and the tensors of the model under their published names; all are mapped.

    The encoder is taken from Video-LLaVA's own folder. The original program takes it from LanguageBind's folder, which
    must therefore hold the same, if it holds weights.

    Args:
        paths: of the parts of `PUBLISHED`.
        ignored: keys, as they are in the files, that the user knows to be harmless.

    Raises:
        WeightsError: a file is absent, damaged, of another model, or holds an unknown key.
        TokenizerError: the tokenizer cannot be used.
    """
    path = paths["llava"]
    if not _is_video_llava(path):
        raise WeightsError(f"{path} is not Video-LLaVA-7B: its config.json has no mm_video_tower. {_HF_HINT}.")
    decoder = read_llama_config(path)
    _check_settings(path)
    _check_tokenizer(path, decoder.vocab_size)
    llava = read_llama(path, vocab_size=decoder.vocab_size, hint="")
    tensors = PUBLISHED.select("llava", paths, llava, ignored=ignored)
    if _FRAMES not in tensors or _PATCHES not in tensors or tensors[_FRAMES].ndim != 3:
        raise WeightsError(f"{path} holds no video tower with attention over time ({_FRAMES}). {_HF_HINT}.")
    vision, activation = _tower(paths, tensors)
    num_frames = tensors[_FRAMES].shape[1]
    return VideoLlavaConfig(vision=vision, activation=activation, num_frames=num_frames, decoder=decoder), tensors


def _check_tokenizer(folder: Path, vocab_size: int) -> None:
    num_pieces = read_sentencepiece(folder / TOKENIZER).vocab_size
    if num_pieces != vocab_size:
        raise WeightsError(
            f"The {TOKENIZER} of {folder} has {num_pieces} pieces for {vocab_size} rows of embeddings; one of them is "
            "another model's."
        )


def _check_settings(folder: Path) -> None:
    values = read_object(folder / "config.json")
    for name, wanted in _SETTINGS.items():
        if values.get(name, wanted) != wanted:
            raise WeightsError(
                f"{folder} is another LLaVA than Video-LLaVA-7B: {name} is {values[name]}, not {wanted}."
            )


def _tower(paths: Mapping[str, Path], tensors: Mapping[str, Tensor]) -> tuple[ClipVisionConfig, str]:
    """Return the sizes and the activation of the video tower: LanguageBind's if it is there, or the published ones."""
    if "video_tower" in paths:
        sizes, activation = _tower_sizes(paths["video_tower"], tensors[_FRAMES].shape[1])
        _check_tower(paths, tensors)
    else:
        if tensors[_PATCHES].shape != _PUBLISHED_PATCHES:
            raise WeightsError(f"{paths['llava']} has another video tower than Video-LLaVA-7B's. {_TOWER_HINT}")
        sizes, activation = PUBLISHED_7B.vision, PUBLISHED_7B.activation
    check_depth(tensors, sizes, prefix=TOWER, folder=paths["llava"])
    return sizes, activation


def _tower_sizes(folder: Path, num_frames: int) -> tuple[ClipVisionConfig, str]:
    """Read the sizes and the activation of LanguageBind's tower, whose weights are of so many frames."""
    values = _vision_config(folder / "config.json")
    if values.get("add_time_attn") is not True:
        raise WeightsError(f"{folder} is another tower, without attention over time. {_TOWER_HINT}")
    activation = values.get("hidden_act", ACTIVATION)
    if activation not in ACTIVATIONS:
        raise WeightsError(f"{folder} is another tower: its hidden_act is {shown(activation)}. {_TOWER_HINT}")
    if values.get("num_frames", num_frames) != num_frames:
        raise WeightsError(
            f"{folder} is the tower of another model: its num_frames is {shown(values['num_frames'])}, but the weights "
            f"are of {num_frames} frames. {_TOWER_HINT}"
        )
    try:
        return clip_sizes(values), activation
    except (KeyError, ValueError) as error:
        raise WeightsError(f"The config.json of {folder} is not LanguageBind's: {error}.") from error


def _check_tower(paths: Mapping[str, Path], tensors: Mapping[str, Tensor]) -> None:
    """Compare LanguageBind's weights, if they are there, with the tower in Video-LLaVA's folder."""
    path = paths["video_tower"]
    if not any(path.glob("*.bin")) and not any(path.glob("*.safetensors")):
        return
    for key, tensor in PUBLISHED.read("video_tower", paths).items():
        own = tensors.get(TOWER + key.removeprefix("vision_model."))
        if own is not None and not _is_near(own, tensor):
            raise WeightsError(
                f"{key} in {path} is not the one in {paths['llava'].name}: they do not belong together. Without the "
                f"weights in {path.name} those of {paths['llava'].name} are used."
            )


def _is_near(own: Tensor, other: Tensor) -> bool:
    """Return whether tensors are equal but for their rounding to 16 bits."""
    return own.shape == other.shape and torch.allclose(own.float(), other.float(), rtol=_BFLOAT16_STEP, atol=1e-4)


def _vision_config(path: Path) -> Mapping[str, Any]:
    values = read_object(path).get("vision_config")
    return values if isinstance(values, dict) else {}
