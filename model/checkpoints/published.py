"""Finds the published files of a model, and checks and merges their tensors.

The original programs load each file leniently, and do not notice a wrong or incomplete one. Here every key of every
file is either used by the model, known to be unused, or refused.
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
from model.networks.network import ConfigT, Network
from model.text.sentencepiece import read_sentencepiece
from model.weights import KeyMap, WeightsError, cover

_NORM, _EMBEDDINGS = "model.norm.weight", "model.embed_tokens.weight"
_DELTA_NORM = 0.05
"""The weights of a LLaMA's last norm are near 1; in the difference between two LLaMAs they are near 0."""


class Search:
    """Finds the parts of one published model: as the user names them, or in a folder under their published names."""

    def __init__(self, model: str, folder: Path | None, named: Mapping[str, Path], *, parts: Sequence[str]) -> None:
        """Search `folder` for the parts that are not in `named`.

        Raises:
            WeightsError: `named` has a part that is not one of `parts`.
        """
        if unknown := sorted(named.keys() - set(parts)):
            raise WeightsError(f"{model} has no part {unknown[0]!r}; its parts are {', '.join(parts)}.")
        self._folder, self._named = folder, named

    def file(self, part: str, *names: str) -> Path:
        """Find the file of a part, which was published under one of `names`.

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

    def folder(self, part: str, description: str, matches: Callable[[Path], bool]) -> Path:
        """Find the folder of a part by its contents.

        Args:
            part: the name of the part.
            description: e.g. `LLaMA folder (config.json, tokenizer.model, weights)`.
            matches: whether a folder is the one.

        Raises:
            WeightsError: there is none, or more than one.
        """
        if part in self._named:
            return self._named[part]
        inside = sorted(self._folder.iterdir()) if self._folder and self._folder.is_dir() else []
        found = [path for path in inside if path.is_dir() and matches(path)]
        if len(found) != 1:
            candidates = f"{found[0].name} and {found[1].name}, each a" if found else "no"
            raise WeightsError(
                f"{self._folder or 'No folder'} has {candidates} {description}; name one with --part {part}=FOLDER."
            )
        return found[0]

    def llama(self) -> Path:
        """Find the folder of the language model.

        Raises:
            WeightsError: there is none, or more than one.
        """
        wanted = ("config.json", TOKENIZER)
        description = "LLaMA folder (config.json, tokenizer.model, weights)"
        return self.folder("llama", description, lambda path: all((path / name).is_file() for name in wanted))


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """The expected keys of a published file: regular expressions for whole keys."""

    wanted: str
    unused: str = ""
    """Keys that the model does not use, unless they are wanted."""
    prefix: str = ""
    """Prefix of the wanted keys in the merged model."""


LLAMA_KEYS = r"model\.(layers\.\d+\..+|(embed_tokens|norm)\.weight)|lm_head\.weight"


def select_wanted(
    path: Path, tensors: Mapping[str, Tensor], keys: Keys, *, model: str, ignored: Sequence[str]
) -> dict[str, Tensor]:
    """Return the tensors of a file that belong to the model, under their names in the merged model.

    Args:
        path: of the file or folder, for the error message.
        tensors: its content.
        keys: the wanted keys, and those that are known to be unused.
        model: the model's name, for the error message.
        ignored: keys that the user knows to be harmless.

    Raises:
        WeightsError: a key is neither wanted nor unused nor ignored.
    """
    selected = {}
    for key in sorted(tensors.keys() - set(ignored)):
        if re.fullmatch(keys.wanted, key):
            selected[keys.prefix + key] = tensors[key]
        elif not re.fullmatch(keys.unused, key):
            raise WeightsError(
                f"{path.name} has a key that is not part of {model}: {key}. It may be another model's file; "
                "if you know the key to be harmless, ignore it with --ignore."
            )
    return selected


def read_llama(folder: Path, *, vocab_size: int, hint: str) -> dict[str, Tensor]:
    """Return every tensor of a LLaMA folder.

    Args:
        folder: in Hugging Face's layout.
        vocab_size: the expected rows of its embeddings.
        hint: names the right LLaMA, for the error message.

    Raises:
        WeightsError: the weights are incomplete, of another vocabulary, or a bare delta.
    """
    tensors = read_weights(folder)
    rows, norm = tensors.get(_EMBEDDINGS), tensors.get(_NORM)
    if rows is not None and len(rows) != vocab_size:
        raise WeightsError(f"{folder} has {len(rows)} embedding rows instead of {vocab_size}. {hint}")
    if norm is not None and float(norm.float().abs().mean()) < _DELTA_NORM:
        raise WeightsError(f"{folder} holds a bare delta: apply it to LLaMA and name the result. {hint}")
    return tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Source(Generic[ConfigT]):
    """A merged published model, ready to be converted."""

    config: ConfigT
    tensors: Mapping[str, Tensor]
    tokenizer: Path
    files: Iterable[Path | None]
    """All files and folders that were read."""


def read_whole(
    folder: Path | None, named: Mapping[str, Path], read_sizes: Callable[[Path], ConfigT]
) -> Source[ConfigT] | None:
    """Read a model from one file of weights; None if the user named parts, or there is no such file.

    Args:
        folder: of `weights.safetensors`, `config.json` and the tokenizer.
        named: parts that the user named.
        read_sizes: reads the sizes.

    Raises:
        WeightsError: a file is absent or damaged.
    """
    if folder is None or named or not (folder / WHOLE).is_file():
        return None
    return Source(
        config=read_sizes(folder / "config.json"),
        tensors=read_folder(folder),
        tokenizer=tokenizer_of(folder),
        files=(folder / WHOLE, tokenizer_of(folder)),
    )


def to_convert(
    family: str, network: Network, source: Source[ConfigT], *, key_map: KeyMap, dtype: torch.dtype | None
) -> tuple[Checkpoint, str]:
    """Check a model against its network; return what `reeltalk convert` writes, and the identity of the sources.

    Args:
        family: the family's name.
        network: of the source's sizes, on the meta device.
        source: the merged model.
        key_map: maps the source's names to ours.
        dtype: what to cast to; None keeps each tensor's dtype.

    Raises:
        WeightsError, TokenizerError: the tensors do not cover every parameter exactly once, or the tokenizer cannot be
            used.
    """
    read_sentencepiece(source.tokenizer)
    covered = cover(network, source.tensors, key_map=key_map)
    checkpoint = Checkpoint(
        family=family,
        sizes=source.config.to_json(),
        tensors={key: source.tensors[key] for key, _ in covered.values()},
        dtype=dtype,
        beside={TOKENIZER: source.tokenizer},
        encoder={name: key for name, (key, _) in covered.items() if network.serves(name, "encode")},
    )
    return checkpoint, stamps(_every_file(source.files))


def _every_file(paths: Iterable[Path | None]) -> Iterable[Path]:
    for path in filter(None, paths):
        yield from [inner for inner in path.iterdir() if inner.is_file()] if path.is_dir() else [path]
