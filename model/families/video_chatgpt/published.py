"""Finds Video-ChatGPT's published folders and file, and merges them as the original loads them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from model.checkpoints.clip import CLIP_FOLDER, check_depth, read_clip_config
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
from model.families.video_chatgpt.network import VideoChatGPTConfig
from model.networks.clip import CLIP_LARGE, ClipVisionConfig, clip_sizes
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
_LLAMA_HINT = (
    "Video-ChatGPT needs LLaVA-Lightning-7B-v1-1 (mmaaz60/LLaVA-7B-Lightening-v1-1): LLaMA-1 with "
    "LLaVA-Lightning-7B-delta-v1-1 applied. A bare LLaMA, LLaMA-2, Vicunas and later LLaVAs give garbage."
)


PUBLISHED = PublishedModel(
    MODEL,
    PublishedPart(
        name="vision",
        folder=CLIP_FOLDER,
        keys=Keys(wanted=r"vision_model\..+", unused=r"text_model\..+|(visual|text)_projection\.weight|logit_scale"),
    ),
    PublishedPart(  # LLaVA, whose projection is for images
        name="llama",
        folder=LLAMA_FOLDER,
        keys=Keys(wanted=LLAMA_KEYS, unused=r"model\.mm_projector\.(weight|bias)"),
    ),
    PublishedPart(  # replaces LLaVA's tensors of the same names
        name="video",
        files=(VIDEO_FILE,),
        keys=Keys(wanted=r"model\.(embed_tokens\.weight|mm_projector\.(weight|bias))"),
    ),
)


def read_published(
    folder: Path | None, named: Mapping[str, Path], *, ignored: Sequence[str]
) -> Source[VideoChatGPTConfig]:
    """Find and merge the published model.

    Raises:
        WeightsError: a part is not found, or see `merge`.
        TokenizerError: the LLaMA folder's tokenizer cannot be used.
    """
    paths = PUBLISHED.find(folder, named)
    config, tensors = merge(paths, ignored=ignored)
    return Source(config=config, tensors=tensors, tokenizer=paths["llama"] / TOKENIZER, files=paths.values())


def read_sizes(path: Path) -> VideoChatGPTConfig:
    """Read the sizes in a `config.json`: in our layout, or by part (`clip` and `llm`).

    Raises:
        WeightsError: the file is absent, or a size is missing or unknown.
    """
    return read_config(path, VideoChatGPTConfig, model=MODEL, part="clip", by_part=_sizes_by_part)


def merge(paths: Mapping[str, Path], *, ignored: Sequence[str] = ()) -> tuple[VideoChatGPTConfig, dict[str, Tensor]]:
    """Merge the files into the sizes and state dict of the original model: its names, each file's own dtype.

    All tensors are mapped except the head, which gets a row of zeros for each token that Video-ChatGPT adds. Those
    rows were never trained or published; the original draws them at random.

    Args:
        paths: of the parts of `PUBLISHED`.
        ignored: keys, as they are in the files, that the user knows to be harmless.

    Raises:
        WeightsError: a file is absent, damaged, of another model, or holds an unknown key.
        TokenizerError: the LLaMA folder's tokenizer cannot be used.
    """
    llama_config, vision = read_llama_config(paths["llama"]), read_clip_config(paths["vision"], model=MODEL)
    video = PUBLISHED.read("video", paths, ignored=ignored)
    _check_video(paths["video"], video, vision, llama_config)
    num_rows = len(video[_EMBEDDINGS])
    config = VideoChatGPTConfig(
        vision=vision,
        decoder=replace(llama_config, vocab_size=num_rows),
        added_tokens=_added_tokens(paths, llama_config.vocab_size, num_rows),
    )
    if config.decoder == PUBLISHED_7B.decoder and vision != PUBLISHED_7B.vision:
        raise WeightsError(f"{paths['vision']} is another CLIP than Video-ChatGPT's, which is clip-vit-large-patch14.")
    llama = read_llama(paths["llama"], vocab_size=llama_config.vocab_size, hint=_LLAMA_HINT)
    merged = PUBLISHED.read("vision", paths, ignored=ignored)
    check_depth(merged, vision, prefix="vision_model.", folder=paths["vision"])
    merged |= PUBLISHED.select("llama", paths, llama, ignored=ignored)
    merged |= video
    if _HEAD in merged and merged[_HEAD].ndim == 2:
        merged[_HEAD] = functional.pad(merged[_HEAD], (0, 0, 0, num_rows - llama_config.vocab_size))
    return config, merged


def _check_video(path: Path, video: Mapping[str, Tensor], vision: ClipVisionConfig, llama: DecoderConfig) -> None:
    if missing := sorted({_EMBEDDINGS, *_PROJECTION} - video.keys()):
        raise WeightsError(f"{path.name} lacks {missing[0]}. It is not the file published as {VIDEO_FILE}.")
    if any(video[key].ndim != 2 for key in (_EMBEDDINGS, _PROJECTION[0])):
        raise WeightsError(
            f"{path.name} holds vectors in place of matrices. It is not the file published as {VIDEO_FILE}."
        )
    num_out, num_in = video[_PROJECTION[0]].shape
    if num_out != llama.width or num_in != vision.width:
        raise WeightsError(
            f"{path.name} projects {num_in} values to {num_out}, but CLIP gives {vision.width} and the language "
            f"model is {llama.width} wide: they do not belong together. {_LLAMA_HINT}"
        )


def _added_tokens(paths: Mapping[str, Path], vocab_size: int, num_rows: int) -> tuple[str, ...]:
    """Return the tokens that are not in the tokenizer's file.

    The language model must have embeddings for LLaVA's added tokens, and the video file for all of them.
    """
    num_pieces = read_sentencepiece(paths["llama"] / TOKENIZER).vocab_size
    path = paths["llama"] / "added_tokens.json"
    ids = read_object(path) if path.is_file() else {}
    later = {token_id: name for name, token_id in ids.items() if isinstance(token_id, int) and token_id >= num_pieces}
    of_llava = tuple(later[token_id] for token_id in range(num_pieces, num_pieces + len(later)) if token_id in later)
    added = (*of_llava, *(name for name in VIDEO_TOKENS if name not in of_llava))
    is_complete = len(of_llava) == len(later) and num_pieces + len(of_llava) == vocab_size
    if not is_complete or num_pieces + len(added) != num_rows:
        raise WeightsError(
            f"{paths['llama']} holds another LLaMA than Video-ChatGPT was trained with: {num_pieces} pieces and "
            f"{len(later)} added tokens (added_tokens.json) for {vocab_size} rows of embeddings, which become "
            f"{num_pieces + len(added)} with Video-ChatGPT's; {paths['video'].name} has {num_rows}. {_LLAMA_HINT}"
        )
    return added


def _sizes_by_part(values: Mapping[str, Any]) -> VideoChatGPTConfig:
    special_ids = values["special_token_ids"]
    return VideoChatGPTConfig(
        vision=clip_sizes(values["clip"]),
        decoder=llama_sizes(values["llm"]),
        added_tokens=tuple(sorted(special_ids, key=special_ids.__getitem__)),
    )
