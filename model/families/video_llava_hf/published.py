"""Finds the published folder of Video-LLaVA `-hf`, and checks that its files belong together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from model.checkpoints.clip import check_depth
from model.checkpoints.folder import TOKENIZER, read_config
from model.checkpoints.huggingface import first_llama
from model.checkpoints.json_object import read_object
from model.checkpoints.published import LLAMA_KEYS, FolderKind, Keys, PublishedModel, PublishedPart, Source
from model.networks.clip import CLIP_LARGE, OPENAI_ACTIVATION, clip_sizes
from model.networks.llama import DecoderConfig
from model.networks.video_llava import VideoLlavaConfig
from model.text.sentencepiece import read_sentencepiece
from model.verification.video_llava import reference_sizes
from model.video.pixels import CLIP_MEAN, CLIP_STD
from model.weights import WeightsError

MODEL = "Video-LLaVA -hf"
TOWER = "video_tower.vision_model."
NUM_FRAMES = 8
"""The number in the model's documentation. Its files do not name one."""

PUBLISHED_7B = VideoLlavaConfig(
    vision=CLIP_LARGE,
    activation=OPENAI_ACTIVATION,
    num_frames=NUM_FRAMES,
    decoder=DecoderConfig(
        vocab_size=32064, width=4096, depth=32, num_heads=32, mlp_width=11008, max_positions=4096, rms_eps=1e-5
    ),
)
"""Sizes of LanguageBind/Video-LLaVA-7B-hf. Embeddings are padded to a multiple of 64 rows."""

_CLIP_DEFAULTS = {
    **{"image_size": 224, "patch_size": 32, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"intermediate_size": 3072, "hidden_act": OPENAI_ACTIVATION, "layer_norm_eps": 1e-5},
}
_LLAMA_DEFAULTS = {
    **{"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"intermediate_size": 11008, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
}
"""Sizes that transformers leaves out of a `config.json`."""
_SETTINGS = {
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
}
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
"""Flags of the image processor, all of which are set."""
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
_ORIGINAL_HINT = "Video-LLaVA-7B is the family video-llava"


def _is_video_llava(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and read_object(path).get("model_type") == "video_llava"


PUBLISHED = PublishedModel(
    MODEL,
    PublishedPart(
        name="llava",
        folder=FolderKind(
            description=(
                f"Video-LLaVA-7B-hf folder (config.json of type video_llava, {TOKENIZER}, weights; {_ORIGINAL_HINT})"
            ),
            matches=_is_video_llava,
        ),
        keys=Keys(
            wanted=rf"video_tower\.vision_model\..+|multi_modal_projector\.linear_[12]\..+|language_model\.({LLAMA_KEYS})",
            unused=r"image_tower\.vision_model\..+",
        ),
    ),
)


def read_published(
    folder: Path | None, named: Mapping[str, Path], *, ignored: Sequence[str]
) -> Source[VideoLlavaConfig]:
    """Find and check the published model. `folder` is its folder, or holds it.

    A folder without any file of a tokenizer has prompts as token ids; such a model can only be verified.

    Args:
        folder: where to look for the part `llava`.
        named: can name its path instead.
        ignored: keys that the user knows to be harmless.

    Raises:
        WeightsError: a file is absent, damaged or of another model, or holds an unknown key.
        TokenizerError: the tokenizer cannot be used.
    """
    if folder is not None and not named and _is_video_llava(folder):
        named = {"llava": folder}
    paths = PUBLISHED.find(folder, named)
    path = paths["llava"]
    values = read_object(path / "config.json")
    config = _published_sizes(path, values)
    has_tokenizer = any((path / name).is_file() for name in (TOKENIZER, *_TOKENIZER_FILES))
    if has_tokenizer:
        _check_tokenizer(path, values)
    _check_processor(path, config.vision.image_size)
    tensors = PUBLISHED.read("llava", paths, ignored=ignored)
    check_depth(tensors, config.vision, prefix=TOWER, folder=path)
    tokenizer = path / TOKENIZER if has_tokenizer else None
    return Source(config=config, tensors=tensors, tokenizer=tokenizer, files=(path,))


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
        by_part=lambda values: reference_sizes(values, has_temporal_attention=False),
    )


def _published_sizes(folder: Path, values: Mapping[str, Any]) -> VideoLlavaConfig:
    if values.get("model_type") != "video_llava":
        raise WeightsError(f"{folder} is not Video-LLaVA-7B-hf: its config.json is of another type. {_ORIGINAL_HINT}.")
    for name, wanted in _SETTINGS.items():
        if values.get(name, wanted) != wanted:
            raise WeightsError(f"{folder} is another LLaVA than {MODEL}: {name} is {values[name]}, not {wanted}.")
    try:
        vision = {**_CLIP_DEFAULTS, **values["vision_config"]}
        llama = {**_LLAMA_DEFAULTS, **values["text_config"]}
        return VideoLlavaConfig(
            vision=clip_sizes(vision),
            activation=vision["hidden_act"],
            num_frames=NUM_FRAMES,
            decoder=first_llama(llama, folder),
        )
    except WeightsError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"The config.json of {folder} is not that of {MODEL}: {error}.") from error


def _check_processor(folder: Path, size: int) -> None:
    """Compare the settings of the image processor, if they are there, with the pixels that are prepared here."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return
    values = read_object(path)
    allowed: dict[str, tuple[object, ...]] = {  # older processors wrote sizes as numbers
        "size": ({"shortest_edge": size}, size),
        "crop_size": ({"height": size, "width": size}, size),
        "resample": (Image.Resampling.BICUBIC,),
        "image_mean": (list(CLIP_MEAN),),
        "image_std": (list(CLIP_STD),),
        "rescale_factor": (1 / 255,),
        **dict.fromkeys(_STEPS, (True,)),
    }
    for name, choices in allowed.items():
        if name in values and values[name] not in choices:
            raise WeightsError(f"{path} is not that of {MODEL}: {name} is {values[name]}.")


def _check_tokenizer(folder: Path, values: Mapping[str, Any]) -> None:
    """Compare the tokenizer, and the added tokens if they are listed, with the ids of the marks in `config.json`."""
    path = folder / "added_tokens.json"
    added = read_object(path) if path.is_file() else {}
    for name, mark in (("image_token_index", "<image>"), ("video_token_index", "<video>")):
        if name in values and added.get(mark, values[name]) != values[name]:
            raise WeightsError(f"{path} has {mark} at {added[mark]}, but config.json at {values[name]}.")
    num_pieces = read_sentencepiece(folder / TOKENIZER).vocab_size
    marks = [values.get(name, num_pieces) for name in ("image_token_index", "video_token_index")]
    first_mark = min(marks) if all(type(mark) is int for mark in marks) else None
    if first_mark != num_pieces:
        raise WeightsError(
            f"The {TOKENIZER} of {folder} has {num_pieces} pieces, but config.json has the first mark at {first_mark}; "
            "one of them is another model's."
        )
