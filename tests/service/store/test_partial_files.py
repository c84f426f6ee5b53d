"""Resumable uploads continue on any replica that shares the directory or bucket, after the last acknowledged byte."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.errors import Gone, Unavailable
from service.store.bucket import Bucket
from service.store.bucket_partial_files import BucketPartialFiles
from service.store.media import MediaStore
from service.store.partial_files import LocalPartialFiles, PartialFile, PartialFiles
from service.store.records import UploadRecord

NEW = UploadRecord(
    id="upl_" + "1" * 32, length=13, filename="a.mp4", content_type="video/mp4", metadata="", expires_at=1e12
)

OpenFiles = Callable[[], PartialFiles]


@pytest.fixture(params=["directory", "bucket"])
def open_files(request: pytest.FixtureRequest, tmp_path: Path) -> OpenFiles:
    """Opens the partial files as a further replica: with a shared directory, or with a shared bucket alone."""
    if request.param == "directory":
        return lambda: LocalPartialFiles(tmp_path / "shared")
    url: str = request.getfixturevalue("bucket_url")
    return lambda: BucketPartialFiles(tmp_path / os.urandom(4).hex(), Bucket(url))


def counted(record: UploadRecord, file: PartialFile) -> UploadRecord:
    return record.model_copy(update={"offset": file.offset, "parts": file.parts})


async def begun(files: PartialFiles) -> UploadRecord:
    """An upload with seven acknowledged bytes."""
    await files.create(NEW.id)
    async with files.append(NEW) as file:
        file.write(b"first, ")
        await file.sync()
        record = counted(NEW, file)
        file.write(b"never acknowledged")
    return record


async def content(files: PartialFiles, record: UploadRecord) -> tuple[int, bytes]:
    async with files.whole(record) as spool:
        spool.sync()
        return spool.num_bytes, spool.path.read_bytes()


async def test_another_replica_continues_after_the_last_acknowledged_byte(open_files: OpenFiles) -> None:
    record = await begun(open_files())
    there = open_files()
    async with there.append(record) as file:
        file.write(b"sec")
        await file.sync()
        file.write(b"ond")
        await file.sync()
        await file.sync()  # nothing new
        record = counted(record, file)
    assert await content(open_files(), record) == (13, b"first, second")


async def test_bytes_that_the_record_does_not_count_are_overwritten(open_files: OpenFiles) -> None:
    record = await begun(open_files())
    for last in (b"other bytes than", b"second"):
        async with open_files().append(record) as file:  # the first replica is killed before it updates the record
            file.write(last)
            await file.sync()
            latest = counted(record, file)
    assert await content(open_files(), latest) == (13, b"first, second")


async def test_a_whole_file_stays_until_it_is_erased(open_files: OpenFiles, tmp_path: Path) -> None:
    files, media = open_files(), MediaStore(tmp_path / "shared")
    media.open()
    await files.create(NEW.id)
    async with files.append(NEW) as file:
        file.write(b"all in one go")
        await file.sync()
        record = counted(NEW, file)
    for _ in range(2):  # the first replica was killed before it recorded the result
        async with files.whole(record) as spool:
            sha256 = await media.commit(spool, "acme")
        assert media.path("acme", sha256).read_bytes() == b"all in one go"
    await files.erase(record.id)
    await files.erase(record.id)  # twice is no error
    with pytest.raises(Gone):
        await content(files, record)


async def test_abandoned_uploads_are_deleted(open_files: OpenFiles) -> None:
    files = open_files()
    record = await begun(files)
    await files.sweep(older_than=60)
    async with files.append(record):
        pass  # the file still exists
    await asyncio.sleep(1.1)  # a bucket's timestamps are in whole seconds
    await files.sweep(older_than=0)
    with pytest.raises(Gone):
        async with files.append(record) as file:  # a directory fails here, a bucket when it reads the parts
            file.write(b"second")
            await file.sync()
            await content(files, counted(record, file))


async def test_a_replica_without_the_shared_directory_logs_the_cause(tmp_path: Path) -> None:
    record = await begun(LocalPartialFiles(tmp_path / "a"))
    with capture_logs() as logged, pytest.raises(Gone, match="replica") as gone:
        async with LocalPartialFiles(tmp_path / "b").append(record):
            pass
    assert gone.value.code == "upload_gone"
    assert "REELTALK_MEDIA_DIR" in logged[0]["advice"]


async def test_an_upload_started_in_a_directory_does_not_continue_in_a_bucket(tmp_path: Path, bucket_url: str) -> None:
    record = await begun(LocalPartialFiles(tmp_path / "a"))
    with pytest.raises(Gone):
        async with BucketPartialFiles(tmp_path / "b", Bucket(bucket_url)).append(record):
            pass


async def test_an_unreachable_bucket_acknowledges_nothing(tmp_path: Path, credentials: None) -> None:
    files = BucketPartialFiles(tmp_path, Bucket("s3://clips?endpoint=http://127.0.0.1:9&region=us-east-1"))
    async with files.append(NEW) as file:
        file.write(b"first, ")
        with pytest.raises(Unavailable):
            await file.sync()
        assert file.parts == ()
    assert not any((tmp_path / "spool").iterdir())
