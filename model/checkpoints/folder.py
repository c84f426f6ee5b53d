"""Our own checkpoint folder: safetensors shards, sizes, tokenizer, and a record of what was written.

Written beside its final name and moved there when complete, so that a folder under that name is whole. The
record spares a start the hashing of gigabytes: its digest is taken as true while every shard has the size and
the sizes have the values that it names. Whoever changes tensors by hand deletes `reeltalk.json`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.engine.sampling_params import SamplingParams
from model.weights import CheckpointDigest, WeightsError, checkpoint_digest, read_safetensors

RECORD = "reeltalk.json"
TOKENIZER = "tokenizer.model"
WHOLE = "weights.safetensors"
"""A folder without a record that has this file has its weights in it alone."""
NO_WEIGHTS = {"inputs.safetensors", "expected.safetensors"}
"""What a reference lays beside the weights."""
SHARD_BYTES = 2 * 1024**3
_SOURCE = "reeltalk_source"
_MODE = 0o644

Report = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What a folder is to hold."""

    family: str
    sizes: Mapping[str, Any]
    """What `config.json` will say."""
    tensors: Mapping[str, Tensor]
    dtype: torch.dtype | None
    """Cast to; None keeps each tensor's."""
    beside: Mapping[str, Path]
    """Further files, such as the tokenizer, and where to copy them from."""

    def dtype_of(self, name: str) -> torch.dtype:
        """What a tensor will be written in."""
        return self.dtype or self.tensors[name].dtype

    def num_bytes(self, name: str) -> int:
        """What a tensor will take."""
        return self.tensors[name].numel() * self.dtype_of(name).itemsize


def write_folder(folder: Path, checkpoint: Checkpoint, *, origin: str, report: Report, limit: int = SHARD_BYTES) -> str:
    """Write a checkpoint, or go on with one whose writing was cut short; finished shards are kept.

    Args:
        folder: must not exist; its parent gets a hidden folder until the last shard is written.
        checkpoint: what to write.
        origin: names the sources; shards of another origin are not kept.
        report: told of the progress.
        limit: bytes of a shard, in which a larger tensor has one to itself.

    Returns:
        The digest that is recorded.

    Raises:
        WeightsError: the folder exists.
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
        "sizes": checkpoint.sizes,
        "files": {name: (partial / name).stat().st_size for name in shards},
    }
    (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    partial.rename(folder)
    return digest


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder, mapped from its files and read when first used.

    Raises:
        WeightsError: a file is absent or damaged, or two hold the same tensor.
    """
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        shard = read_safetensors(path)
        if twins := sorted(tensors.keys() & shard.keys()):
            raise WeightsError(f"{path.name} repeats {twins[0]}.")
        tensors |= shard
    return tensors


def tokenizer_of(folder: Path) -> Path:
    """Where LLaMA's `tokenizer.model` is: in the folder, or in a subfolder `llama`."""
    own = folder / TOKENIZER
    return own if own.is_file() else folder / "llama" / TOKENIZER


def read_sampling(checkpoint: Path, *, published: SamplingParams) -> SamplingParams:
    """How answers are sampled by default: as `generation_config.json` says, or without one as `published`.

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
            repetition_penalty=float(values.get("repetition_penalty", 1.0)),
            max_tokens=int(values.get("max_new_tokens", published.max_tokens)),
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"The generation_config.json of {checkpoint.name} cannot be used: {error}") from error


def folder_digest(folder: Path, tensors: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> str:
    """The recorded digest where the record still describes the folder; otherwise computed from the tensors."""
    record = read_record(folder)
    if record is not None and record["sizes"] == sizes and record["files"] == _file_sizes(folder):
        return str(record["digest"])
    return checkpoint_digest(tensors, sizes)


def recompute_digest(folder: Path) -> str:
    """The digest of a recorded folder as it is now; reads every byte.

    Raises:
        WeightsError: there is no record, or a file is absent or damaged.
    """
    record = read_record(folder)
    if record is None:
        raise WeightsError(f"{folder} has no legible {RECORD}.")
    return checkpoint_digest(read_folder(folder), record["sizes"])


def read_record(folder: Path) -> dict[str, Any] | None:
    """What `write_folder` recorded; None where there is no record or no legible one."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    is_legible = isinstance(record, dict) and {"digest", "sizes", "files"} <= record.keys()
    return record if is_legible and isinstance(record["files"], dict) else None


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
    """File name to the tensors in it, both in order."""
    groups: list[list[str]] = []
    room = 0
    for name in sorted(checkpoint.tensors):
        size = checkpoint.num_bytes(name)
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return {f"model-{at:05}-of-{len(groups):05}.safetensors": group for at, group in enumerate(groups, start=1)}


def _write_shards(
    partial: Path, shards: Mapping[str, list[str]], checkpoint: Checkpoint, *, source: str, report: Report
) -> str:
    digest = CheckpointDigest(checkpoint.sizes)
    done, total = 0, sum(map(checkpoint.num_bytes, checkpoint.tensors))
    for file, names in shards.items():
        if not _is_finished(partial / file, source):
            tensors = {name: checkpoint.tensors[name].to(checkpoint.dtype_of(name)).contiguous() for name in names}
            _write_whole(partial / file, tensors, source)
            del tensors
        written = read_safetensors(partial / file)
        for name in names:
            digest.add(name, written[name])
            done += checkpoint.num_bytes(name)
            report(done, total)
    return digest.hexdigest()


def _write_whole(path: Path, tensors: dict[str, Tensor], source: str) -> None:
    """The file comes under its name when all its bytes are on the disk."""
    growing = path.with_suffix(".growing")
    save_file(tensors, growing, metadata={"format": "pt", _SOURCE: source})
    growing.chmod(_MODE)  # safetensors lets nobody but the owner read
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
    """Names what a shard was made from, so that one of an earlier attempt is known again."""
    shapes = [f"{name} {list(t.shape)} {t.dtype}" for name, t in sorted(checkpoint.tensors.items())]
    return _hash_of({"origin": origin, "dtype": str(checkpoint.dtype), "shapes": shapes, "shards": dict(shards)})


def _hash_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def stamps(paths: Iterable[Path]) -> str:
    """Files by name, size and time of change, as an `origin`."""
    return "; ".join(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in sorted(paths))
