"""Reads the inputs of a reference, and checks that they are complete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from model.checkpoints.folder import tokenizer_of
from model.checkpoints.json_object import read_object
from model.family import Family
from model.text.conversation import Clip
from model.text.sentencepiece import read_sentencepiece
from model.text.tokenizer import ByteTokenizer, Tokenizer
from model.video.pixels import normalize
from model.weights import WeightsError, read_safetensors

INPUTS_FILE = "inputs.safetensors"
Value = TypeVar("Value")


def read_inputs(folder: Path, *names: str) -> Mapping[str, Tensor]:
    """Return the tensors of `inputs.safetensors`.

    Raises:
        WeightsError: the file is absent, or lacks one of `names`.
    """
    path = folder / INPUTS_FILE
    return _complete(read_safetensors(path), names, path)


def read_dialogue(folder: Path, *names: str) -> Mapping[str, Any]:
    """Return the object in `dialogue.json`.

    Raises:
        WeightsError: the file is absent, or lacks one of `names`.
    """
    path = folder / "dialogue.json"
    return _complete(read_object(path), names, path)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return LLaMA's tokenizer of a model's folder; references that begin with token ids have bytes as tokens.

    Raises:
        TokenizerError: the tokenizer is absent or damaged.
    """
    path = tokenizer_of(folder)
    if not path.is_file() and (folder / INPUTS_FILE).is_file():
        return ByteTokenizer()
    return read_sentencepiece(path)


def read_clip(family: Family, folder: Path) -> tuple[Clip, Tensor]:
    """Return the sampled frames of a folder's `clip.mp4`, and their pixels [1, T, 3, S, S], float32.

    Raises:
        WeightsError: the folder has no clip.
        VideoError: the clip cannot be decoded.
    """
    # Imports PyAV, which folders with pixels do not need.
    from model.video.sampling import sample_clip

    assert family.inputs is not None, "the model sees videos"
    path = folder / "clip.mp4"
    if not path.is_file():
        raise WeightsError(f"{folder} has neither inputs.safetensors nor clip.mp4, so there is nothing to run.")
    sampled = sample_clip(path, family.inputs)
    pixel_values = torch.from_numpy(normalize(sampled.inputs.frames, family.inputs.pixels)).unsqueeze(0)
    return Clip(frame_indices=sampled.indices, fps=sampled.facts.fps), pixel_values


def _complete(values: Mapping[str, Value], names: tuple[str, ...], path: Path) -> Mapping[str, Value]:
    if missing := [name for name in names if name not in values]:
        raise WeightsError(f"{path} lacks {missing[0]}.")
    return values
