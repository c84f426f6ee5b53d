"""Uploads in pieces go on at any replica that shares the directory, and at no other."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.errors import Gone
from service.store.partial_files import PartialFiles

UPLOAD = "upl_" + "1" * 32


async def begun(root: Path) -> PartialFiles:
    files = PartialFiles(root)
    await files.create(UPLOAD)
    with files.append(UPLOAD, offset=0) as file:
        file.write(b"first, ")
        await file.sync()
        file.write(b"never acknowledged")
    return files


async def test_another_replica_goes_on_where_the_first_was_acknowledged(tmp_path: Path) -> None:
    await begun(tmp_path)
    there = PartialFiles(tmp_path)
    with there.append(UPLOAD, offset=7) as file:
        file.write(b"second")
        await file.sync()
    async with there.whole(UPLOAD) as spool:
        assert (spool.num_bytes, spool.path.read_bytes()) == (13, b"first, second")


async def test_a_replica_with_a_directory_of_its_own_says_what_is_missing(tmp_path: Path) -> None:
    await begun(tmp_path / "a")
    with (
        capture_logs() as logged,
        pytest.raises(Gone, match="replica") as gone,
        PartialFiles(tmp_path / "b").append(UPLOAD, offset=7),
    ):
        pass
    assert gone.value.code == "upload_gone"
    assert "REELTALK_MEDIA_DIR" in logged[0]["advice"]
