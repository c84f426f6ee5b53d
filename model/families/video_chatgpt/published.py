"""Finds Video-ChatGPT's published folders and file, and merges them as the original loads them."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from model.checkpoints.folder import TOKENIZER, read_config
from model.checkpoints.huggingface import llama_sizes, read_llama_config, read_weights
from model.checkpoints.json_object import read_object
from model.checkpoints.published import LLAMA_KEYS, Keys, Search, Source, read_llama, select_wanted
from model.checkpoints.torch_file import read_torch_file
from model.families.video_chatgpt.network import VideoChatGPTConfig
from model.networks.clip import CLIP_LARGE, OPENAI_ACTIVATION, ClipVisionConfig, clip_sizes
from model.networks.llama import DecoderConfig
from model.text.sentencepiece import read_sentencepiece
from model.weights import WeightsError

MODEL = "Video-ChatGPT"
VIDEO_FILE = "video_chatgpt-7B.bin"
VIDEO_PATCH, VIDEO_START, VIDEO_END = "<vid_patch>", "<vid_start>", "<vid_end>"
VIDEO_TOKENS = (VIDEO_PATCH, VIDEO_START, VIDEO_END)
"""The tokens that Video-ChatGPT adds to those of LLaVA, in the order of their ids."""

PUBLISHED_7B = VideoChatGPTConfig(
    vision=CLIP_LARGE,
    decoder=DecoderConfig(vocab_size=32006, width=4096, depth=32, num_heads=32, mlp_width=11008),
    added_tokens=("<im_patch>", "<im_start>", "<im_end>", *VIDEO_TOKENS),
)
"""Sizes of openai/clip-vit-large-patch14 and LLaVA-Lightning-7B-v1-1, with three more tokens."""

_PROJECTION = ("model.mm_projector.weight", "model.mm_projector.bias")
_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_VISION_KEYS = Keys(wanted=r"vision_model\..+", unused=r"text_model\..+|(visual|text)_projection\.weight|logit_scale")
_LLAMA_KEYS = Keys(wanted=LLAMA_KEYS, unused=r"model\.mm_projector\.(weight|bias)")
"""LLaVA's projection is for images, and is not used."""
_VIDEO_KEYS = Keys(wanted=r"model\.(embed_tokens\.weight|mm_projector\.(weight|bias))")
"""These replace LLaVA's tensors of the same names."""
_LLAMA_HINT = (
    "Video-ChatGPT needs LLaVA-Lightning-7B-v1-1 (mmaaz60/LLaVA-7B-Lightening-v1-1): LLaMA-1 with "
    "LLaVA-Lightning-7B-delta-v1-1 applied. A bare LLaMA, LLaMA-2, Vicunas and later LLaVAs give garbage."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFiles:
    """Paths of the three parts of a published Video-ChatGPT model."""

    vision: Path
    """A folder of CLIP in Hugging Face's layout."""
    llama: Path
    """A folder of LLaVA in Hugging Face's layout."""
    video: Path
    """The parameters that Video-ChatGPT's own training changed: the projection, and all token embeddings."""


def find_published(folder: Path | None, named: Mapping[str, Path]) -> PublishedFiles:
    """Find the three parts, each named in `named` or in `folder`: folders by their contents, the file by its name.

    Raises:
        WeightsError: a part is neither named nor found, or `named` has an unknown part.
    """
    search = Search(MODEL, folder, named, parts=[field.name for field in fields(PublishedFiles)])
    what = "folder of clip-vit-large-patch14 (config.json with a vision_config, weights)"
    return PublishedFiles(
        vision=search.folder("vision", what, _is_clip),
        llama=search.llama(),
        video=search.file("video", VIDEO_FILE),
    )


def read_published(
    folder: Path | None, named: Mapping[str, Path], *, ignored: Sequence[str]
) -> Source[VideoChatGPTConfig]:
    """Find and merge the published model.

    Raises:
        WeightsError: see `find_published` and `merge`.
        TokenizerError: the LLaMA folder's tokenizer cannot be used.
    """
    files = find_published(folder, named)
    config, tensors = merge(files, ignored=ignored)
    return Source(config=config, tensors=tensors, tokenizer=files.llama / TOKENIZER, files=astuple(files))


def read_sizes(path: Path) -> VideoChatGPTConfig:
    """Read the sizes in a `config.json`: in our layout, or by part (`clip` and `llm`).

    Raises:
        WeightsError: the file is absent, or a size is missing or unknown.
    """
    return read_config(path, VideoChatGPTConfig, model=MODEL, part="clip", by_part=_sizes_by_part)


def merge(files: PublishedFiles, *, ignored: Sequence[str] = ()) -> tuple[VideoChatGPTConfig, dict[str, Tensor]]:
    """Merge the files into the sizes and state dict of the original model: its names, each file's own dtype.

    All tensors are mapped except the head, which gets a row of zeros for each token that Video-ChatGPT adds. Those
    rows were never trained or published; the original draws them at random.

    Args:
        files: the three parts.
        ignored: keys, as they are in the files, that the user knows to be harmless.

    Raises:
        WeightsError: a file is absent, damaged, of another model, or holds an unknown key.
        TokenizerError: the LLaMA folder's tokenizer cannot be used.
    """
    llama_config, vision = read_llama_config(files.llama), _vision_sizes(files.vision)
    video = select_wanted(files.video, read_torch_file(files.video), _VIDEO_KEYS, model=MODEL, ignored=ignored)
    _check_video(files.video, video, vision, llama_config)
    num_rows = len(video[_EMBEDDINGS])
    config = VideoChatGPTConfig(
        vision=vision,
        decoder=replace(llama_config, vocab_size=num_rows),
        added_tokens=_added_tokens(files, llama_config.vocab_size, num_rows),
    )
    if config.decoder == PUBLISHED_7B.decoder and vision != PUBLISHED_7B.vision:
        raise WeightsError(f"{files.vision} is another CLIP than Video-ChatGPT's, which is clip-vit-large-patch14.")
    llama = read_llama(files.llama, vocab_size=llama_config.vocab_size, hint=_LLAMA_HINT)
    merged = select_wanted(files.vision, read_weights(files.vision), _VISION_KEYS, model=MODEL, ignored=ignored)
    merged |= select_wanted(files.llama, llama, _LLAMA_KEYS, model=MODEL, ignored=ignored)
    merged |= video
    if _HEAD in merged:
        merged[_HEAD] = functional.pad(merged[_HEAD], (0, 0, 0, num_rows - llama_config.vocab_size))
    return config, merged


def _is_clip(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and "vision_config" in read_object(path)


def _vision_sizes(folder: Path) -> ClipVisionConfig:
    values = read_object(folder / "config.json")
    try:
        sizes = clip_sizes(values["vision_config"])
        activation = values["vision_config"].get("hidden_act", OPENAI_ACTIVATION)
    except (KeyError, TypeError) as error:
        raise WeightsError(f"The config.json of {folder} lacks {error}; it is not CLIP's.") from error
    except ValueError as error:
        raise WeightsError(f"{folder} is another CLIP than {MODEL}'s: {error}.") from error
    if activation != OPENAI_ACTIVATION:
        raise WeightsError(f"{folder} is another CLIP than Video-ChatGPT's: its activation is {activation}.")
    return sizes


def _check_video(path: Path, video: Mapping[str, Tensor], vision: ClipVisionConfig, llama: DecoderConfig) -> None:
    if missing := sorted({_EMBEDDINGS, *_PROJECTION} - video.keys()):
        raise WeightsError(f"{path.name} lacks {missing[0]}. It is not the file published as {VIDEO_FILE}.")
    num_out, num_in = video[_PROJECTION[0]].shape
    if num_out != llama.width or num_in != vision.width:
        raise WeightsError(
            f"{path.name} projects {num_in} values to {num_out}, but CLIP gives {vision.width} and the language "
            f"model is {llama.width} wide: they do not belong together. {_LLAMA_HINT}"
        )


def _added_tokens(files: PublishedFiles, vocab_size: int, num_rows: int) -> tuple[str, ...]:
    """Return the tokens that are not in the tokenizer's file.

    The language model must have embeddings for LLaVA's added tokens, and the video file for all of them.
    """
    num_pieces = read_sentencepiece(files.llama / TOKENIZER).vocab_size
    path = files.llama / "added_tokens.json"
    ids = read_object(path) if path.is_file() else {}
    later = {token_id: name for name, token_id in ids.items() if isinstance(token_id, int) and token_id >= num_pieces}
    of_llava = tuple(later[token_id] for token_id in range(num_pieces, num_pieces + len(later)) if token_id in later)
    added = (*of_llava, *(name for name in VIDEO_TOKENS if name not in of_llava))
    is_complete = len(of_llava) == len(later) and num_pieces + len(of_llava) == vocab_size
    if not is_complete or num_pieces + len(added) != num_rows:
        raise WeightsError(
            f"{files.llama} holds another LLaMA than Video-ChatGPT was trained with: {num_pieces} pieces and "
            f"{len(later)} added tokens (added_tokens.json) for {vocab_size} rows of embeddings, which become "
            f"{num_pieces + len(added)} with Video-ChatGPT's; {files.video.name} has {num_rows}. {_LLAMA_HINT}"
        )
    return added


def _sizes_by_part(values: Mapping[str, Any]) -> VideoChatGPTConfig:
    special_ids = values["special_token_ids"]
    return VideoChatGPTConfig(
        vision=clip_sizes(values["clip"]),
        decoder=llama_sizes(values["llm"]),
        added_tokens=tuple(sorted(special_ids, key=special_ids.__getitem__)),
    )
