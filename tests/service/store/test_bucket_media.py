"""The media store in a bucket behaves like the one in a directory; an unreachable bucket raises `Unavailable`."""

import hashlib
import os
from pathlib import Path

import pytest

from service.errors import Unavailable
from service.store.bucket import Bucket
from service.store.bucket_media import BucketStore
from service.store.media import RemoteContent

TENANT = "acme"


@pytest.fixture
def bucket(bucket_url: str, tmp_path: Path) -> BucketStore:
    store = BucketStore(tmp_path / "media", Bucket(bucket_url))
    store.open()
    return store


async def commit(bucket: BucketStore, content: bytes) -> str:
    async with bucket.spool() as spool:
        spool.write(content)
        return await bucket.commit(spool, TENANT)


async def test_an_upload_is_stored_under_its_hash_and_not_on_the_disk(bucket: BucketStore, tmp_path: Path) -> None:
    content = os.urandom(12_345)
    sha256 = await commit(bucket, content)
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert await bucket.exists(TENANT, sha256)
    assert not await bucket.exists("another-tenant", sha256)
    async with bucket.local(TENANT, sha256) as path:
        assert path is not None
        assert path.read_bytes() == content
    assert [path for path in (tmp_path / "media").rglob("*") if path.is_file()] == []


async def test_a_file_larger_than_one_part_is_stored_whole(bucket: BucketStore) -> None:
    content = os.urandom(1 << 20) * 20
    sha256 = await commit(bucket, content)
    async with bucket.local(TENANT, sha256) as path:
        assert path is not None
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256


async def test_a_range_of_a_file_can_be_requested(bucket: BucketStore) -> None:
    sha256 = await commit(bucket, b"0123456789")

    async def ask(byte_range: str | None) -> tuple[int, bytes, str | None]:
        found = await bucket.content(TENANT, sha256, byte_range=byte_range)
        assert isinstance(found, RemoteContent)
        return found.status, b"".join(found.chunks), found.headers.get("Content-Range")

    assert await ask(None) == (200, b"0123456789", None)
    assert await ask("bytes=2-4") == (206, b"234", "bytes 2-4/10")
    assert (await ask("bytes=50-60"))[:2] == (416, b"")


async def test_a_missing_file_is_none(bucket: BucketStore) -> None:
    unknown = "ab" * 32
    assert await bucket.content(TENANT, unknown, byte_range=None) is None
    assert await bucket.frame(TENANT, unknown, 0) is None
    async with bucket.local(TENANT, unknown) as path:
        assert path is None


async def test_a_damaged_file_counts_as_missing(bucket: BucketStore) -> None:
    sha256 = await commit(bucket, b"whole")
    name = f"{TENANT}/{sha256[:2]}/{sha256}"
    bucket._bucket.client.put_object(**bucket._bucket.location(name), Body=b"hole")
    async with bucket.local(TENANT, sha256) as path:
        assert path is None


async def test_images_are_stored_next_to_their_file_and_deleted_with_it(bucket: BucketStore) -> None:
    sha256, other = await commit(bucket, b"one"), await commit(bucket, b"two")
    await bucket.put_frames(TENANT, sha256, [b"first", b"second"])
    assert [await bucket.frame(TENANT, sha256, index) for index in range(3)] == [b"first", b"second", None]
    assert {(file.tenant, file.sha256, file.num_bytes) for file in await bucket.stored()} == {
        (TENANT, sha256, 3),
        (TENANT, other, 3),
    }
    await bucket.erase(TENANT, sha256)
    await bucket.erase(TENANT, sha256)  # twice is no error
    assert [file.sha256 for file in await bucket.stored()] == [other]
    assert await bucket.frame(TENANT, sha256, 0) is None


async def test_a_bucket_that_is_unreachable_or_refuses_raises_unavailable(
    credentials: None, s3_endpoint: str, tmp_path: Path
) -> None:
    for url in ("s3://clips?endpoint=http://127.0.0.1:9&region=us-east-1", f"s3://nobody?endpoint={s3_endpoint}"):
        store = BucketStore(tmp_path / "media", Bucket(url))
        store.open()
        with pytest.raises(Unavailable) as refused:
            await commit(store, b"clip")
        assert refused.value.code == "media_unavailable"
