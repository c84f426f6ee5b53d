"""Uploads in pieces go on wherever the directory or the bucket is shared, from the last byte that was acknowledged."""

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

Opened = Callable[[], PartialFiles]


@pytest.fixture(params=["directory", "bucket"])
def at_a_replica(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """What a replica opens: one of those that share a directory, or a bucket and no directory."""
    if request.param == "directory":
        return lambda: LocalPartialFiles(tmp_path / "shared")
    url: str = request.getfixturevalue("bucket_url")
    return lambda: BucketPartialFiles(tmp_path / os.urandom(4).hex(), Bucket(url))


def counted(record: UploadRecord, file: PartialFile) -> UploadRecord:
    return record.model_copy(update={"offset": file.offset, "parts": file.parts})


async def begun(files: PartialFiles) -> UploadRecord:
    """An upload of which seven bytes count."""
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


async def test_another_replica_goes_on_where_the_first_was_acknowledged(at_a_replica: Opened) -> None:
    record = await begun(at_a_replica())
    there = at_a_replica()
    async with there.append(record) as file:
        file.write(b"sec")
        await file.sync()
        file.write(b"ond")
        await file.sync()
        await file.sync()  # nothing new
        record = counted(record, file)
    assert await content(at_a_replica(), record) == (13, b"first, second")


async def test_what_was_put_there_and_not_counted_is_put_there_again(at_a_replica: Opened) -> None:
    record = await begun(at_a_replica())
    for last in (b"other bytes than", b"second"):
        async with at_a_replica().append(record) as file:  # killed before it could count, and then not
            file.write(last)
            await file.sync()
            latest = counted(record, file)
    assert await content(at_a_replica(), latest) == (13, b"first, second")


async def test_a_whole_file_stays_until_it_is_erased(at_a_replica: Opened, tmp_path: Path) -> None:
    files, media = at_a_replica(), MediaStore(tmp_path / "shared")
    media.open()
    await files.create(NEW.id)
    async with files.append(NEW) as file:
        file.write(b"all in one go")
        await file.sync()
        record = counted(NEW, file)
    for _ in range(2):  # the first one was killed before anybody knew what the upload had become
        async with files.whole(record) as spool:
            sha256 = await media.commit(spool, "acme")
        assert media.path("acme", sha256).read_bytes() == b"all in one go"
    await files.erase(record.id)
    await files.erase(record.id)  # twice is no error
    with pytest.raises(Gone):
        await content(files, record)


async def test_what_nobody_goes_on_with_is_swept_out(at_a_replica: Opened) -> None:
    files = at_a_replica()
    record = await begun(files)
    await files.sweep(older_than=60)
    async with files.append(record):
        pass  # it is there
    await asyncio.sleep(1.1)  # a bucket counts in seconds
    await files.sweep(older_than=0)
    with pytest.raises(Gone):
        async with files.append(record) as file:  # a directory sees it here, a bucket when the file is put together
            file.write(b"second")
            await file.sync()
            await content(files, counted(record, file))


async def test_a_replica_with_a_directory_of_its_own_says_what_is_missing(tmp_path: Path) -> None:
    record = await begun(LocalPartialFiles(tmp_path / "a"))
    with capture_logs() as logged, pytest.raises(Gone, match="replica") as gone:
        async with LocalPartialFiles(tmp_path / "b").append(record):
            pass
    assert gone.value.code == "upload_gone"
    assert "REELTALK_MEDIA_DIR" in logged[0]["advice"]


async def test_an_upload_begun_in_a_directory_does_not_go_on_in_a_bucket(tmp_path: Path, bucket_url: str) -> None:
    record = await begun(LocalPartialFiles(tmp_path / "a"))
    with pytest.raises(Gone):
        async with BucketPartialFiles(tmp_path / "b", Bucket(bucket_url)).append(record):
            pass


async def test_a_bucket_that_is_away_counts_nothing(tmp_path: Path, credentials: None) -> None:
    files = BucketPartialFiles(tmp_path, Bucket("s3://clips?endpoint=http://127.0.0.1:9&region=us-east-1"))
    async with files.append(NEW) as file:
        file.write(b"first, ")
        with pytest.raises(Unavailable):
            await file.sync()
        assert file.parts == ()
    assert not any((tmp_path / "spool").iterdir())
