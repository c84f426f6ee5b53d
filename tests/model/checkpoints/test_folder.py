"""Checkpoint folders are written completely or not at all, can be resumed, and have a record."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoints import folder as module
from model.checkpoints.folder import (
    RECORD,
    Checkpoint,
    folder_digest,
    read_folder,
    read_record,
    recompute_digest,
    write_folder,
)
from model.weights import WeightsError, checkpoint_digest

SIZES = {"depth": 3, "ratio": 4.3637}
TENSORS = {f"layer.{number}": torch.full((4, 8), float(number)) for number in range(5)}
LIMIT = 2 * 4 * 8 * 4
"""Room for two tensors in a shard."""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    tokenizer = tmp_path / "source.model"
    tokenizer.write_bytes(b"pieces")
    beside = {"tokenizer.model": tokenizer}
    return Checkpoint(family="videochat", sizes=SIZES, tensors=TENSORS, dtype=None, beside=beside)


def write(folder: Path, checkpoint: Checkpoint, *, origin: str = "files", stop_at: int | None = None) -> str:
    """Write, and stop as if killed after `stop_at` bytes."""

    def report(done: int, total: int) -> None:
        assert total == sum(map(checkpoint.num_bytes, checkpoint.tensors))
        if stop_at is not None and done >= stop_at:
            raise KeyboardInterrupt

    return write_folder(folder, checkpoint, origin=origin, report=report, limit=LIMIT)


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path, checkpoint: Checkpoint) -> None:
    both = torch.arange(8.0).reshape(2, 4)
    views = {"whole": both, "again": both.view(2, 4), "row": both[1]}
    write(tmp_path / "mine", replace(checkpoint, tensors=views))
    read = read_folder(tmp_path / "mine")
    assert all(torch.equal(read[name], tensor) for name, tensor in views.items())


def test_a_folder_is_read_as_it_was_written(tmp_path: Path, checkpoint: Checkpoint) -> None:
    folder = tmp_path / "mine"
    digest = write(folder, checkpoint)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        *(f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)),
        RECORD,
        "tokenizer.model",
    ]
    read = read_folder(folder)
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    assert json.loads((folder / "config.json").read_bytes()) == SIZES
    assert digest == checkpoint_digest(read, SIZES) == recompute_digest(folder)


def test_tensors_are_cast_and_the_digest_is_of_the_written_ones(tmp_path: Path, checkpoint: Checkpoint) -> None:
    halved = Checkpoint(family="videochat", sizes=SIZES, tensors=TENSORS, dtype=torch.float16, beside=checkpoint.beside)
    digest = write(tmp_path / "mine", halved)
    read = read_folder(tmp_path / "mine")
    assert {tensor.dtype for tensor in read.values()} == {torch.float16}
    assert digest == checkpoint_digest(read, SIZES) != checkpoint_digest(TENSORS, SIZES)


def test_an_interrupted_run_leaves_no_folder_and_the_next_resumes_it(tmp_path: Path, checkpoint: Checkpoint) -> None:
    folder, partial = tmp_path / "mine", tmp_path / ".mine.partial"
    with pytest.raises(KeyboardInterrupt):
        write(folder, checkpoint, stop_at=LIMIT + 1)
    assert not folder.exists()
    finished = partial / "model-00001-of-00003.safetensors"
    before = finished.stat().st_mtime_ns
    (partial / "model-00003-of-00003.growing").write_bytes(b"half")

    digest = write(folder, checkpoint)
    assert digest == checkpoint_digest(TENSORS, SIZES)
    assert (folder / finished.name).stat().st_mtime_ns == before
    assert not partial.exists()
    assert not list(folder.glob("*.growing"))


def test_shards_of_other_sources_are_not_kept(tmp_path: Path, checkpoint: Checkpoint) -> None:
    folder = tmp_path / "mine"
    with pytest.raises(KeyboardInterrupt):
        write(folder, checkpoint, origin="old files", stop_at=LIMIT + 1)
    changed = {name: tensor + 1 for name, tensor in TENSORS.items()}
    other = Checkpoint(family="videochat", sizes=SIZES, tensors=changed, dtype=None, beside=checkpoint.beside)
    assert write(folder, other, origin="new files") == checkpoint_digest(changed, SIZES)


def test_an_existing_folder_is_not_overwritten(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with pytest.raises(WeightsError, match=r"exists already\. Remove it or name another folder"):
        write(tmp_path, checkpoint)


def test_the_recorded_digest_saves_reading_the_tensors(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    digest = write(folder, checkpoint)
    with monkeypatch.context() as patched:
        patched.setattr(module, "checkpoint_digest", lambda *_: pytest.fail("the tensors were read"))
        assert folder_digest(folder, read_folder(folder), SIZES) == digest


def test_an_outdated_record_is_ignored(tmp_path: Path, checkpoint: Checkpoint) -> None:
    folder = tmp_path / "mine"
    digest = write(folder, checkpoint)
    tensors = read_folder(folder)
    other_sizes = SIZES | {"depth": 4}
    assert folder_digest(folder, tensors, other_sizes) == checkpoint_digest(tensors, other_sizes) != digest

    record = json.loads((folder / RECORD).read_bytes())
    other_lengths = record | {"files": dict.fromkeys(record["files"], 1), "digest": "0" * 64}
    for broken in (json.dumps(other_lengths), "{}", "[]", "{"):
        (folder / RECORD).write_text(broken)
        assert folder_digest(folder, tensors, SIZES) == digest


def test_a_shard_that_was_not_copied_is_named(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write(tmp_path / "mine", checkpoint)
    (tmp_path / "mine" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"lacks model-00002-of-00003\.safetensors"):
        read_folder(tmp_path / "mine")


def test_files_can_be_read_by_others(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write(tmp_path / "mine", checkpoint)
    assert all(path.stat().st_mode & 0o044 for path in (tmp_path / "mine").iterdir()) or os.umask(0o022) != 0o022


def test_tensors_stay_mapped_from_their_files(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write(tmp_path / "mine", checkpoint)
    assert read_record(tmp_path / "mine") is not None
    tensors = read_folder(tmp_path / "mine")
    assert str(tmp_path / "mine" / "model-00001-of-00003.safetensors") in Path("/proc/self/maps").read_text()
    del tensors
