"""Reads and writes checkpoint folders: safetensors shards, sizes, tokenizer, and a record of what was written.

A folder is written under a temporary name and renamed when it is complete. The record saves hashing gigabytes at every
start: its digest is trusted while the shards have the file sizes, and `config.json` the values, that it names. Delete
`reeltalk.json` after you change tensors by hand.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints.json_object import read_object
from model.engine.sampling_params import SamplingParams
from model.networks.network import ConfigT
from model.weights import CheckpointDigest, WeightsError, cast_to, checkpoint_digest, encoder_digest, read_safetensors

RECORD = "reeltalk.json"
TOKENIZER = "tokenizer.model"
WHOLE = "weights.safetensors"
"""If a folder without a record has this file, all its weights are in it."""
NO_WEIGHTS = {"inputs.safetensors", "expected.safetensors"}
"""Files of a set of reference tensors that hold no weights."""
SHARD_BYTES = 2 * 1024**3
_SOURCE = "reeltalk_source"
_MODE = 0o644

ReportProgress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in total."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The content of a folder to be written."""

    family: str
    sizes: Mapping[str, Any]
    """The content of `config.json`."""
    tensors: Mapping[str, Tensor]
    dtype: torch.dtype | None
    """The dtype to cast to; None keeps each tensor's own."""
    beside: Mapping[str, Path]
    """Further files, such as the tokenizer, and the paths to copy them from."""
    encoder: Mapping[str, str] = field(default_factory=dict)
    """The encoder's parameters, and the name of the tensor that each is loaded from."""
    notes: tuple[str, ...] = ()
    """Sentences for the user about choices that were made."""

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the dtype that a tensor is written in."""
        return self.dtype or self.tensors[name].dtype

    def num_bytes(self, name: str) -> int:
        """Return the bytes that a tensor takes when it is written."""
        return self.tensors[name].numel() * self.dtype_of(name).itemsize


def write_folder(
    folder: Path, checkpoint: Checkpoint, *, origin: str, report: ReportProgress, limit: int = SHARD_BYTES
) -> str:
    """Write a checkpoint, or resume an interrupted run; shards that are complete are kept.

    Args:
        folder: must not exist; until the last shard is written, its parent holds a hidden folder instead.
        checkpoint: what to write.
        origin: identifies the sources; shards of another origin are not kept.
        report: called after each tensor.
        limit: bytes of a shard; a larger tensor has a shard to itself.

    Returns:
        The recorded digest.

    Raises:
        WeightsError: the folder exists, or a value does not fit into the dtype.
    """
    if folder.exists():
        raise WeightsError(f"{folder} exists already. Remove it or name another folder.")
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    shards = _shards(checkpoint, limit)
    _remove_others(partial, shards)
    digest = _write_shards(partial, shards, checkpoint, source=_source(checkpoint, shards, origin), report=report)
    for name, path in checkpoint.beside.items():
        shutil.copyfile(path, partial / name)
    (partial / "config.json").write_text(json.dumps(checkpoint.sizes, indent=2) + "\n")
    record = {
        "format": 1,
        "family": checkpoint.family,
        "digest": digest,
        "encoder_digest": _encoder_digest(partial, shards, checkpoint),
        "sizes": checkpoint.sizes,
        "files": {name: (partial / name).stat().st_size for name in shards},
    }
    (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    partial.rename(folder)
    return digest


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedModel(Generic[ConfigT]):
    """A model in a checkpoint folder, without its tokenizer."""

    config: ConfigT
    tensors: Mapping[str, Tensor]
    digest: str
    """SHA-256 of the tensors and the sizes, hex."""
    sampling: SamplingParams
    encoder_digest: str | None = None
    """The part of it that features depend on, if the folder records it."""


def read_model(
    folder: Path, *, read_sizes: Callable[[Path], ConfigT], published_sampling: SamplingParams
) -> SavedModel[ConfigT]:
    """Read sizes, tensors (mapped, read on first use) and default sampling of a folder.

    Args:
        folder: of `config.json`, `*.safetensors` and perhaps `generation_config.json`.
        read_sizes: reads the family's sizes from `config.json`.
        published_sampling: the default sampling without a `generation_config.json`.

    Raises:
        WeightsError: a file is absent, damaged or another model's.
    """
    config = read_sizes(folder / "config.json")
    tensors = read_folder(folder)
    return SavedModel(
        config=config,
        tensors=tensors,
        digest=folder_digest(folder, tensors, config.to_json()),
        sampling=read_sampling(folder, published=published_sampling),
        encoder_digest=(_valid_record(folder, config.to_json()) or {}).get("encoder_digest"),
    )


def read_config(
    path: Path, kind: type[ConfigT], *, model: str, part: str, by_part: Callable[[Mapping[str, Any]], ConfigT]
) -> ConfigT:
    """Read the sizes in a `config.json`: in our layout, or in the layout of reference tensors, which is by part.

    Args:
        path: of the file.
        kind: the family's dataclass of sizes.
        model: the model's name, for the error message.
        part: a part that only the layout by part has.
        by_part: converts the layout by part.

    Raises:
        WeightsError: the file is absent, or a size is missing, unknown or impossible.
    """
    values = read_object(path)
    try:
        return by_part(values) if part in values else kind.from_json(values)
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise WeightsError(f"{path} does not hold the sizes of a {model} model ({error}).") from error


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a folder, mapped from its files and read on first use.

    Raises:
        WeightsError: a file is absent or damaged, or two files hold the same tensor.
    """
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        shard = read_safetensors(path)
        if repeated := sorted(tensors.keys() & shard.keys()):
            raise WeightsError(f"{path.name} repeats {repeated[0]}.")
        tensors |= shard
    return tensors


def tokenizer_of(folder: Path) -> Path:
    """Return the path of LLaMA's `tokenizer.model`: in the folder, or in its subfolder `llama`."""
    own = folder / TOKENIZER
    return own if own.is_file() else folder / "llama" / TOKENIZER


def read_sampling(checkpoint: Path, *, published: SamplingParams) -> SamplingParams:
    """Return the default sampling: from `generation_config.json`, or `published` if there is none.

    Raises:
        WeightsError: the file cannot be used.
    """
    path = checkpoint / "generation_config.json"
    if not path.exists():
        return published
    try:
        values = json.loads(path.read_bytes())
        return SamplingParams(
            temperature=float(values.get("temperature", 1.0)) if values.get("do_sample") else 0.0,
            top_k=int(values.get("top_k", published.top_k)) if values.get("do_sample") else 0,
            top_p=float(values.get("top_p", 1.0)) if values.get("do_sample") else 1.0,
            repetition_penalty=float(values.get("repetition_penalty", published.repetition_penalty)),
            max_tokens=int(values.get("max_new_tokens", published.max_tokens)),
        )
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsError(f"The generation_config.json of {checkpoint.name} cannot be used: {error}") from error


def folder_digest(folder: Path, tensors: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> str:
    """Return the recorded digest if the record still describes the folder; otherwise compute it from the tensors."""
    record = _valid_record(folder, sizes)
    return checkpoint_digest(tensors, sizes) if record is None else str(record["digest"])


def recompute_digest(folder: Path) -> str:
    """Compute the digest of a recorded folder from its present content; reads every byte.

    Raises:
        WeightsError: there is no record, or a file is absent or damaged.
    """
    record = read_record(folder)
    if record is None:
        raise WeightsError(f"{folder} has no readable {RECORD}.")
    return checkpoint_digest(read_folder(folder), record["sizes"])


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of `write_folder`; None if there is none or it cannot be read."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    is_valid = isinstance(record, dict) and {"digest", "sizes", "files"} <= record.keys()
    return record if is_valid and isinstance(record["files"], dict) else None


def _valid_record(folder: Path, sizes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the folder's record if it still describes the folder's files and `sizes`."""
    record = read_record(folder)
    if record is not None and record["sizes"] == sizes and record["files"] == _file_sizes(folder):
        return record
    return None


def _weight_files(folder: Path) -> list[Path]:
    if record := read_record(folder):
        paths = [folder / name for name in sorted(record["files"])]
    elif (folder / WHOLE).is_file():
        paths = [folder / WHOLE]
    else:
        paths = [path for path in sorted(folder.glob("*.safetensors")) if path.name not in NO_WEIGHTS]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise WeightsError(f"{folder} lacks {missing[0]}. Copy the folder again, or convert again.")
    if not paths:
        raise WeightsError(f"{folder} holds no *.safetensors.")
    return paths


def _file_sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in _weight_files(folder)}


def _shards(checkpoint: Checkpoint, limit: int) -> dict[str, list[str]]:
    """Return each file's name and the names of its tensors, both sorted."""
    groups: list[list[str]] = []
    left = 0
    for name in sorted(checkpoint.tensors):
        size = checkpoint.num_bytes(name)
        if not groups or size > left:
            groups.append([])
            left = limit
        groups[-1].append(name)
        left -= size
    return {f"model-{at:05}-of-{len(groups):05}.safetensors": group for at, group in enumerate(groups, start=1)}


def _write_shards(
    partial: Path, shards: Mapping[str, list[str]], checkpoint: Checkpoint, *, source: str, report: ReportProgress
) -> str:
    digest = CheckpointDigest(checkpoint.sizes)
    done, total = 0, sum(map(checkpoint.num_bytes, checkpoint.tensors))
    for file, names in shards.items():
        if not _is_finished(partial / file, source):
            tensors = {
                name: cast_to(checkpoint.dtype_of(name), checkpoint.tensors[name], name=name).contiguous()
                for name in names
            }
            _write_whole(partial / file, _unshared(tensors), source)
            del tensors
        written = read_safetensors(partial / file)
        for name in names:
            digest.add(name, written[name])
            done += checkpoint.num_bytes(name)
            report(done, total)
    return digest.hexdigest()


def _encoder_digest(partial: Path, shards: Mapping[str, list[str]], checkpoint: Checkpoint) -> str | None:
    if not checkpoint.encoder:
        return None
    written = {name: tensor for file in shards for name, tensor in read_safetensors(partial / file).items()}
    return encoder_digest({name: written[key] for name, key in checkpoint.encoder.items()}, checkpoint.sizes)


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy each tensor that shares its memory with an earlier one, because safetensors writes no such tensors."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return apart


def _write_whole(path: Path, tensors: dict[str, Tensor], source: str) -> None:
    """Write a file under a temporary name, and rename it when all its bytes are on disk."""
    growing = path.with_suffix(".growing")
    save_file(tensors, growing, metadata={"format": "pt", _SOURCE: source})
    growing.chmod(_MODE)  # safetensors makes the file readable by its owner only
    with growing.open("rb") as file:
        os.fsync(file.fileno())
    growing.replace(path)


def _is_finished(path: Path, source: str) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(_SOURCE) == source
    except (OSError, SafetensorError):
        return False


def _remove_others(partial: Path, shards: Mapping[str, list[str]]) -> None:
    for path in partial.iterdir():
        if path.name not in shards:
            path.unlink()


def _source(checkpoint: Checkpoint, shards: Mapping[str, list[str]], origin: str) -> str:
    """Identify what a shard is made from, so that a shard of an interrupted run can be recognised."""
    shapes = [f"{name} {list(t.shape)} {t.dtype}" for name, t in sorted(checkpoint.tensors.items())]
    return _hash_of({"origin": origin, "dtype": str(checkpoint.dtype), "shapes": shapes, "shards": dict(shards)})


def _hash_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def stamps(paths: Iterable[Path]) -> str:
    """Return the names, sizes and modification times of files, as an `origin`."""
    return "; ".join(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in sorted(paths))
