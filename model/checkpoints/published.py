"""Files as their authors published them, whatever the model: the parts are found, and every key of each is sorted out.

The originals load each file leniently, so that a wrong or incomplete one goes unseen. Here every key of every
file is wanted, known to be unused, or refused.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import torch
from torch import Tensor

from model.checkpoints.folder import TOKENIZER, WHOLE, Checkpoint, read_folder, stamps, tokenizer_of
from model.checkpoints.huggingface import read_weights
from model.networks.video_network import ConfigT, VideoNetwork
from model.text.sentencepiece import read_sentencepiece
from model.weights import KeyMap, WeightsError, cover

_NORM, _EMBEDDINGS = "model.norm.weight", "model.embed_tokens.weight"
_DELTA_NORM = 0.05
"""A LLaMA's last norm multiplies by some 1; that of a difference between two LLaMAs by next to nothing."""


class Search:
    """Finds the parts of one published model: named by the user, or in a folder under their published names."""

    def __init__(self, model: str, folder: Path | None, named: Mapping[str, Path], *, parts: Sequence[str]) -> None:
        """Look in `folder` for what `named` does not name.

        Raises:
            WeightsError: `named` has a name that is none of `parts`.
        """
        if strangers := sorted(named.keys() - set(parts)):
            raise WeightsError(f"{model} has no part {strangers[0]!r}; its parts are {', '.join(parts)}.")
        self._folder, self._named = folder, named

    def file(self, part: str, *names: str) -> Path:
        """The file of a part, which was published under one of `names`.

        Raises:
            WeightsError: there is none, or more than one.
        """
        if part in self._named:
            return self._named[part]
        found = [self._folder / name for name in names if (self._folder / name).is_file()] if self._folder else []
        if len(found) > 1:
            raise WeightsError(
                f"{self._folder} has {found[0].name} and {found[1].name}; say which with --part {part}=FILE."
            )
        if not found:
            raise WeightsError(
                f"{self._folder or 'No folder'} has no {names[-1]}; download it, or name it with --part {part}=FILE."
            )
        return found[0]

    def folder(self, part: str, what: str, is_it: Callable[[Path], bool]) -> Path:
        """The folder of a part, known by what is in it.

        Args:
            part: as the user names it.
            what: e.g. `LLaMA folder (config.json, tokenizer.model, weights)`.
            is_it: whether a folder is one.

        Raises:
            WeightsError: there is none, or more than one.
        """
        if part in self._named:
            return self._named[part]
        inside = sorted(self._folder.iterdir()) if self._folder and self._folder.is_dir() else []
        found = [path for path in inside if path.is_dir() and is_it(path)]
        if len(found) != 1:
            told = f"{found[0].name} and {found[1].name}, each a" if found else "no"
            raise WeightsError(f"{self._folder or 'Nowhere'} has {told} {what}; name one with --part {part}=FOLDER.")
        return found[0]

    def llama(self) -> Path:
        """The folder of the language model.

        Raises:
            WeightsError: there is none, or more than one.
        """
        wanted = ("config.json", TOKENIZER)
        what = "LLaMA folder (config.json, tokenizer.model, weights)"
        return self.folder("llama", what, lambda path: all((path / name).is_file() for name in wanted))


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """Which keys of a published file are whose: regular expressions for whole keys."""

    wanted: str
    unused: str = ""
    """Known to be of no use, if they are not wanted."""
    prefix: str = ""
    """What the whole model puts before the wanted ones."""


LLAMA_KEYS = r"model\.(layers\.\d+\..+|(embed_tokens|norm)\.weight)|lm_head\.weight"


def sort_out(
    path: Path, tensors: Mapping[str, Tensor], keys: Keys, *, model: str, ignored: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors of a file that belong to the model, under the names that they have there.

    Args:
        path: the file or folder, to be named.
        tensors: what it holds.
        keys: what is wanted, and what is known to be unused.
        model: to be named.
        ignored: keys that the user knows to be harmless.

    Raises:
        WeightsError: a key is neither wanted nor unused nor ignored.
    """
    sorted_out = {}
    for key in sorted(tensors.keys() - set(ignored)):
        if re.fullmatch(keys.wanted, key):
            sorted_out[keys.prefix + key] = tensors[key]
        elif not re.fullmatch(keys.unused, key):
            raise WeightsError(
                f"{path.name} has a key that belongs nowhere in {model}: {key}. It may be another model's file; "
                "if you know the key to be harmless, say --ignore."
            )
    return sorted_out


def read_llama(folder: Path, *, vocab_size: int, hint: str) -> dict[str, Tensor]:
    """Every tensor of a LLaMA folder.

    Args:
        folder: as Hugging Face lays it out.
        vocab_size: rows that belong into its embeddings.
        hint: a sentence or two that say which LLaMA is the right one.

    Raises:
        WeightsError: the weights are incomplete, those of another vocabulary, or a bare delta.
    """
    tensors = read_weights(folder)
    rows, norm = tensors.get(_EMBEDDINGS), tensors.get(_NORM)
    if rows is not None and len(rows) != vocab_size:
        raise WeightsError(f"{folder} has {len(rows)} embedding rows where {vocab_size} belong. {hint}")
    if norm is not None and float(norm.float().abs().mean()) < _DELTA_NORM:
        raise WeightsError(f"{folder} holds a bare delta: apply it to LLaMA and name the result. {hint}")
    return tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Source(Generic[ConfigT]):
    """One model that can be converted."""

    config: ConfigT
    tensors: Mapping[str, Tensor]
    tokenizer: Path
    files: Iterable[Path | None]
    """All that was read: files, folders."""


def read_whole(
    folder: Path | None, named: Mapping[str, Path], config_of: Callable[[Path], ConfigT]
) -> Source[ConfigT] | None:
    """The model that lies whole in one file; None where parts are named, or there is no such file.

    Args:
        folder: of `weights.safetensors`, `config.json` and the tokenizer.
        named: parts that the user named.
        config_of: reads the sizes.

    Raises:
        WeightsError: a file is absent or damaged.
    """
    if folder is None or named or not (folder / WHOLE).is_file():
        return None
    return Source(
        config=config_of(folder / "config.json"),
        tensors=read_folder(folder),
        tokenizer=tokenizer_of(folder),
        files=(folder / WHOLE, tokenizer_of(folder)),
    )


def to_convert(
    family: str, network: VideoNetwork, source: Source[ConfigT], *, key_map: KeyMap, dtype: torch.dtype | None
) -> tuple[Checkpoint, str]:
    """What `reeltalk convert` is to write, and what names its sources.

    Args:
        family: by its name.
        network: of the source's sizes, on the meta device.
        source: what was found.
        key_map: the source's names to ours.
        dtype: what to cast to; None keeps each tensor's.

    Raises:
        WeightsError, TokenizerError: the tensors do not cover every parameter exactly once, or the tokenizer is none.
    """
    read_sentencepiece(source.tokenizer)
    covered = cover(network, source.tensors, key_map=key_map)
    checkpoint = Checkpoint(
        family=family,
        sizes=source.config.to_json(),
        tensors={key: source.tensors[key] for key, _ in covered.values()},
        dtype=dtype,
        beside={TOKENIZER: source.tokenizer},
    )
    return checkpoint, stamps(_every_file(source.files))


def _every_file(paths: Iterable[Path | None]) -> Iterable[Path]:
    for path in filter(None, paths):
        yield from [inner for inner in path.iterdir() if inner.is_file()] if path.is_dir() else [path]
