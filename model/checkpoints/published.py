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
from model.checkpoints.torch_file import read_torch_file
from model.checkpoints.values import check_kind, check_values
from model.networks.network import ConfigT, Network
from model.text.sentencepiece import read_sentencepiece
from model.weights import KeyMap, WeightsError, cover, read_safetensors

_NORM, _EMBEDDINGS = "model.norm.weight", "model.embed_tokens.weight"
_DELTA_NORM = 0.05
"""The weights of a LLaMA's last norm are near 1; in the difference between two LLaMAs they are near 0."""


LLAMA_KEYS = r"model\.(layers\.\d+\..+|(embed_tokens|norm)\.weight)|lm_head\.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """The expected keys of a published file: regular expressions for whole keys."""

    wanted: str
    unused: str = ""
    """Keys that the model does not use, unless they are wanted."""
    prefix: str = ""
    """Prefix of the wanted keys in the merged model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderKind:
    """Recognises a published folder by its contents, because people rename folders."""

    description: str
    """For the error message, e.g. `LLaMA folder (config.json, tokenizer.model, weights)`."""
    matches: Callable[[Path], bool]


def holds(*names: str) -> Callable[[Path], bool]:
    """Return whether a folder has files of these names, as a function of the folder."""
    return lambda folder: all((folder / name).is_file() for name in names)


LLAMA_FOLDER = FolderKind(
    description="LLaMA folder (config.json, tokenizer.model, weights)", matches=holds("config.json", TOKENIZER)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedPart:
    """One part of a published model: a file with one of the published names, or a folder of one kind."""

    name: str
    """As in `--part NAME=PATH`."""
    keys: Keys | None = None
    """The keys of its tensors; None for a part without tensors."""
    files: tuple[str, ...] = ()
    folder: FolderKind | None = None
    is_optional: bool = False


class PublishedModel:
    """The parts of which one model was published, found and read by their declarations."""

    def __init__(self, name: str, *parts: PublishedPart) -> None:
        """Declare the parts; `name` is the model's, for error messages."""
        self.name = name
        self._parts = {part.name: part for part in parts}

    def find(self, folder: Path | None, named: Mapping[str, Path]) -> dict[str, Path]:
        """Find every part: as the user named it, or in `folder` under its published name. Optional ones may be absent.

        Raises:
            WeightsError: a part is neither named nor found, is found twice, or `named` has an unknown part.
        """
        if unknown := sorted(named.keys() - self._parts.keys()):
            raise WeightsError(f"{self.name} has no part {unknown[0]!r}; its parts are {', '.join(self._parts)}.")
        paths = {part.name: named.get(part.name) or _find(part, folder) for part in self._parts.values()}
        return {name: path for name, path in paths.items() if path is not None}

    def read(self, part: str, paths: Mapping[str, Path], *, ignored: Sequence[str] = ()) -> dict[str, Tensor]:
        """Return the tensors of a part that belong to the model, under their names in the merged model.

        Raises:
            WeightsError: a file is absent, damaged or holds an unknown key.
        """
        path = paths[part]
        if path.is_dir():
            tensors = read_weights(path)
        else:
            tensors = read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
        return self.select(part, paths, tensors, ignored=ignored)

    def select(
        self, part: str, paths: Mapping[str, Path], tensors: Mapping[str, Tensor], *, ignored: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Return those `tensors` of a part that belong to the model, under their names in the merged model.

        Args:
            part: its name.
            paths: from `find`, for the error message.
            tensors: what the part holds.
            ignored: keys that the user knows to be harmless.

        Raises:
            WeightsError: a key is neither wanted nor unused nor ignored, or a tensor is not one of finite numbers in
                floating point.
        """
        keys = self._parts[part].keys
        assert keys is not None, f"the part {part} has tensors"
        selected = {}
        for key in sorted(tensors.keys() - set(ignored)):
            if re.fullmatch(keys.wanted, key):
                check_values({key: tensors[key]}, file=paths[part].name)
                selected[keys.prefix + key] = tensors[key]
            elif not re.fullmatch(keys.unused, key):
                raise WeightsError(
                    f"{paths[part].name} has a key that is not part of {self.name}: {key}. It may be another model's "
                    "file; if you know the key to be harmless, ignore it with --ignore."
                )
        return selected


def _find(part: PublishedPart, folder: Path | None) -> Path | None:
    """Return the path of a part in `folder`; None if it is optional and absent."""
    if part.folder is not None:
        inside = sorted(folder.iterdir()) if folder and folder.is_dir() else []
        found = [path for path in inside if path.is_dir() and part.folder.matches(path)]
    else:
        found = [folder / name for name in part.files if (folder / name).is_file()] if folder else []
    if len(found) == 1:
        return found[0]
    if not found and part.is_optional:
        return None
    raise WeightsError(_not_found(part, folder, found))


def _not_found(part: PublishedPart, folder: Path | None, found: Sequence[Path]) -> str:
    kind = "FILE" if part.folder is None else "FOLDER"
    naming = f"--part {part.name}={kind}"
    wanted = part.files[-1] if part.folder is None else part.folder.description
    if folder is None:
        return f"Name the {wanted} with {naming}, or name a folder that holds all parts."
    if found and part.folder is None:
        return f"{folder} has {found[0].name} and {found[1].name}; say which with {naming}."
    if found:
        return f"{folder} has {found[0].name} and {found[1].name}, each a {wanted}; name one with {naming}."
    if part.folder is None:
        return f"{folder} has no {wanted}; download it, or name it with {naming}."
    return f"{folder} has no {wanted}; name one with {naming}."


def read_llama(folder: Path, *, vocab_size: int, hint: str) -> dict[str, Tensor]:
    """Return every tensor of a LLaMA folder.

    Args:
        folder: in Hugging Face's layout.
        vocab_size: the expected rows of its embeddings.
        hint: names the right LLaMA, for the error message.

    Raises:
        WeightsError: the weights are incomplete, of another vocabulary, no numbers in floating point, or a bare delta.
    """
    tensors = read_weights(folder)
    for key in (_EMBEDDINGS, _NORM):
        if key in tensors:
            check_kind(key, tensors[key], file=folder.name)
    rows, norm = tensors.get(_EMBEDDINGS), tensors.get(_NORM)
    if rows is not None and rows.shape[:1] != (vocab_size,):
        raise WeightsError(
            f"{folder} has {rows.shape[0] if rows.ndim else 'no'} embedding rows instead of {vocab_size}. {hint}"
        )
    if norm is not None and float(norm.float().abs().mean()) < _DELTA_NORM:
        raise WeightsError(f"{folder} holds a bare delta: apply it to LLaMA and name the result. {hint}")
    return tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Source(Generic[ConfigT]):
    """A merged published model, ready to be converted."""

    config: ConfigT
    tensors: Mapping[str, Tensor]
    tokenizer: Path | None
    """None: the model was published without one, and can only be verified."""
    files: Iterable[Path | None]
    """All files and folders that were read."""
    note: str = ""
    """A sentence for the user about a choice that was made."""


def read_whole(
    folder: Path | None, named: Mapping[str, Path], read_sizes: Callable[[Path], ConfigT]
) -> Source[ConfigT] | None:
    """Read a model from one file of weights; None if the user named parts, or there is no such file.

    Args:
        folder: of `weights.safetensors`, `config.json` and the tokenizer.
        named: parts that the user named.
        read_sizes: reads the sizes.

    Raises:
        WeightsError: a file is absent or damaged, or a tensor is not one of finite numbers in floating point.
    """
    if folder is None or named or not (folder / WHOLE).is_file():
        return None
    tensors = read_folder(folder)
    check_values(tensors, file=WHOLE)
    return Source(
        config=read_sizes(folder / "config.json"),
        tensors=tensors,
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
    if source.tokenizer is not None:
        read_sentencepiece(source.tokenizer)
    covered = cover(network, source.tensors, key_map=key_map)
    checkpoint = Checkpoint(
        family=family,
        sizes=source.config.to_json(),
        tensors={key: source.tensors[key] for key, _ in covered.values()},
        dtype=dtype,
        beside={} if source.tokenizer is None else {TOKENIZER: source.tokenizer},
        encoder={name: key for name, (key, _) in covered.items() if network.serves(name, "encode")},
        notes=(source.note,) if source.note else (),
    )
    return checkpoint, stamps(_every_file(source.files))


def _every_file(paths: Iterable[Path | None]) -> Iterable[Path]:
    for path in filter(None, paths):
        yield from [inner for inner in path.iterdir() if inner.is_file()] if path.is_dir() else [path]
