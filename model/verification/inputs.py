"""Reads the inputs of a reference, and checks that they are complete and of the right types."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from model.checkpoints.folder import tokenizer_of
from model.checkpoints.json_object import read_object
from model.family import Family
from model.text.conversation import Clip
from model.text.sentencepiece import read_sentencepiece
from model.text.tokenizer import ByteTokenizer, Tokenizer
from model.video.pixels import normalize
from model.video.spec import VideoError
from model.weights import WeightsError, read_safetensors

if TYPE_CHECKING:
    from model.video.sampling import SampledClip

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
        WeightsError: the file is absent, lacks one of `names`, or has a value of a wrong type.
    """
    path = folder / "dialogue.json"
    return _complete(checked(read_object(path), path), names, path)


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
        WeightsError: the folder has no clip, or it cannot be decoded.
    """
    sampled = sampled_clip(family, folder)
    assert family.inputs is not None, "the model sees videos"
    pixel_values = torch.from_numpy(normalize(sampled.inputs.frames, family.inputs.pixels)).unsqueeze(0)
    return Clip(frame_indices=sampled.indices, fps=sampled.facts.fps), pixel_values


def sampled_clip(family: Family, folder: Path) -> "SampledClip":
    """Return what a family sees and hears of a folder's `clip.mp4`.

    Raises:
        WeightsError: the folder has no clip, or it cannot be decoded.
    """
    # Imports PyAV, which folders with pixels do not need.
    from model.video.sampling import sample_clip

    assert family.inputs is not None, "the model sees videos"
    path = folder / "clip.mp4"
    if not path.is_file():
        raise WeightsError(f"{folder} has neither {INPUTS_FILE} nor clip.mp4, so there is nothing to run.")
    try:
        return sample_clip(path, family.inputs)
    except VideoError as error:
        raise WeightsError(f"{path} cannot be used. {error}") from error


def token_rows(family: Family, inputs: Mapping[str, Tensor], name: str) -> list[list[int]]:
    """Return the token ids [B, L] of the inputs by row. Negative ids are marks.

    Raises:
        WeightsError: they are of another type or shape, there are none, or one is beyond the vocabulary.
    """
    ids, vocab_size = inputs[name], family.language_model.config.vocab_size
    if ids.is_floating_point() or ids.ndim != 2 or ids.numel() == 0:
        raise WeightsError(f"{name} in the inputs must be whole numbers [B, L], not {ids.dtype} {list(ids.shape)}.")
    if int(ids.max()) >= vocab_size:
        raise WeightsError(f"{name} in the inputs has the id {int(ids.max())}, beyond the {vocab_size} of the model.")
    rows: list[list[int]] = ids.long().tolist()
    return rows


@torch.inference_mode()
def embedded(family: Family, ids: Sequence[int]) -> Tensor:
    """Return the embeddings [L, hidden] of token ids.

    Raises:
        WeightsError: an id is not in the vocabulary.
    """
    embed = family.language_model.get_input_embeddings()
    vocab_size = family.language_model.config.vocab_size
    if wrong := [token for token in ids if not 0 <= token < vocab_size]:
        raise WeightsError(f"A prompt has the id {wrong[0]}; the ids of the model are 0 to {vocab_size - 1}.")
    rows: Tensor = embed(torch.tensor(list(ids), dtype=torch.long, device=family.device))
    return rows


def checked(values: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Return the values of a reference's JSON file, after a check of the types of all that verification reads.

    Raises:
        WeightsError: a value has a wrong type.
    """
    for name, value in values.items():
        what, is_right = _TYPES.get(name, ("", _is_anything))
        if not is_right(value):
            raise WeightsError(f"{name} in {path} must be {what}, not {_brief(value)}.")
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                checked(inner, path)
    return values


def _is_anything(value: object) -> bool:  # noqa: ARG001
    return True


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_or_null(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _each(is_right: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


def _is_weights(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(weight, int | float) for weight in value.values())


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


_TEXTS, _IDS, _ID_LISTS = (
    ("a list of texts", _each(_is_text)),
    ("a list of token ids", _each(_is_id)),
    ("a list of lists of token ids", _each(_each(_is_id))),
)
_TYPES: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    **dict.fromkeys(("question", "instruction", "text", "system", "video_message"), ("a text", _is_text)),
    **dict.fromkeys(("prompt_video", "prompt_audio_video"), ("a text", _is_text)),
    **dict.fromkeys(("input", "prompt"), ("a text", _is_text_or_null)),
    **dict.fromkeys(("questions", "segments", "slots"), _TEXTS),
    **dict.fromkeys(("input_ids", "input_ids_with_one_video_token", "generated_ids", "beam3_raw_sequence"), _IDS),
    **dict.fromkeys(("segment_ids", "stop_sequences"), _ID_LISTS),
    **dict.fromkeys(("turns", "prompts", "stop_cases"), ("a list of objects", _each(_is_object))),
    "eos_token_id": ("a token id", _is_id),
    "eos_case": ("an object", _is_object),
    "weights": ("an object of numbers", _is_weights),
}
"""What the values of a reference must be, by name at any depth."""


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _complete(values: Mapping[str, Value], names: tuple[str, ...], path: Path) -> Mapping[str, Value]:
    if missing := [name for name in names if name not in values]:
        raise WeightsError(f"{path} lacks {missing[0]}.")
    return values
