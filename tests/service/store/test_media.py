"""The media store contains a file completely or not at all, under the hash of its bytes."""

import asyncio
import hashlib
import os
import time
from pathlib import Path

import pytest

from service.store.media import MediaStore

TENANT = "acme"


@pytest.fixture
def media(tmp_path: Path) -> MediaStore:
    store = MediaStore(tmp_path / "media")
    store.open()
    return store


def about(folder: Path, sha256: str) -> list[Path]:
    return [path for path in folder.rglob("*") if sha256 in str(path)]


def spooled(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "media" / "spool").iterdir())


async def commit(media: MediaStore, content: bytes) -> str:
    async with media.spool() as spool:
        for at in range(0, len(content), 1000):
            spool.write(content[at : at + 1000])
        return await media.commit(spool, TENANT)


async def test_an_upload_is_stored_under_its_hash(media: MediaStore, tmp_path: Path) -> None:
    content = os.urandom(12_345)
    sha256 = await commit(media, content)
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert media.path(TENANT, sha256).read_bytes() == content
    assert await media.exists(TENANT, sha256)
    assert not await media.exists("another-tenant", sha256)
    assert spooled(tmp_path) == []


async def test_an_upload_that_breaks_off_leaves_nothing(media: MediaStore, tmp_path: Path) -> None:
    with pytest.raises(ConnectionAbortedError):
        async with media.spool() as spool:
            spool.write(b"half")
            assert len(spooled(tmp_path)) == 1
            raise ConnectionAbortedError
    assert spooled(tmp_path) == []


async def test_the_same_bytes_at_once_are_never_seen_half_written(media: MediaStore) -> None:
    content = os.urandom(300_000)
    path = media.path(TENANT, hashlib.sha256(content).hexdigest())
    seen: set[int] = set()

    async def look() -> None:
        while len(seen) < 2:
            seen.add(path.stat().st_size if path.exists() else 0)
            await asyncio.sleep(0)

    async with asyncio.timeout(10):
        await asyncio.gather(look(), *(commit(media, content) for _ in range(4)))
    assert seen == {0, len(content)}
    assert path.read_bytes() == content


async def test_leftovers_of_a_crash_are_removed_and_uploads_in_progress_are_not(
    media: MediaStore, tmp_path: Path
) -> None:
    old, young = (tmp_path / "media" / "spool" / name for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    kept = media.path(TENANT, await commit(media, b"whole"))
    os.utime(kept, (0, 0))

    MediaStore(tmp_path / "media").open()  # another start in the same directory

    assert spooled(tmp_path) == [young]
    assert kept.read_bytes() == b"whole"


async def test_images_are_stored_next_to_their_file_and_deleted_with_it(media: MediaStore, tmp_path: Path) -> None:
    sha256, other = await commit(media, b"one"), await commit(media, b"two")
    await media.put_frames(TENANT, sha256, [b"first", b"second"])
    assert len(about(tmp_path, sha256)) == 4
    assert [await media.frame(TENANT, sha256, i) for i in range(3)] == [b"first", b"second", None]

    await media.erase(TENANT, sha256)
    await media.erase(TENANT, sha256)  # twice is no error

    assert about(tmp_path, sha256) == []
    assert await media.exists(TENANT, other)


async def test_other_users_of_the_machine_have_no_access(media: MediaStore, tmp_path: Path) -> None:
    await media.put_frames(TENANT, await commit(media, b"mine"), [b"picture"])
    folders = [path for path in (tmp_path / "media").rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o077 for path in folders if path.parent != tmp_path / "media"} == {0}
