"""Files go when their time is over or when they take too much: what is needed last, what is being prepared not."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.ids import video_id
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.connection import StoreClient
from service.store.leases import Leases
from service.store.media import MediaStore
from service.store.partial_files import LocalPartialFiles
from service.store.sessions import SessionStore
from service.store.videos import VideoStore
from service.videos.retention import Retention
from tests.service.answers.conversations import TENANT, session_record, video_record

HOUR = 3600


class Kept:
    """Files of a thousand bytes, one an hour old, the next two, and so on."""

    def __init__(self, redis: StoreClient, folder: Path) -> None:
        self.media, self.videos, self.redis, self.metrics = MediaStore(folder), VideoStore(redis), redis, Metrics()
        self.media.open()
        self.partial_files = LocalPartialFiles(folder)
        self.names: list[str] = []

    async def add(self, *, status: str = "ready", in_session: bool = False) -> str:
        async with self.media.spool() as spool:
            spool.write(os.urandom(1000))
            sha256 = await self.media.commit(spool, TENANT)
        self.names.append(sha256)
        age = len(self.names) * HOUR
        os.utime(self.media.path(TENANT, sha256), (time.time() - age,) * 2)
        record = video_record(id=video_id(TENANT, sha256), sha256=sha256, bytes=1000, status=status)
        await self.videos.create(TENANT, record)
        if in_session:
            await SessionStore(self.redis).create(TENANT, session_record(record.id))
        return sha256

    async def sweep(self, **settings: int) -> list[int]:
        """Which files are left, by their number."""
        retention = Retention(
            settings=Settings.model_validate(settings),
            media=self.media,
            partial_files=self.partial_files,
            videos=self.videos,
            leases=Leases(self.redis, seconds=9),
            metrics=self.metrics,
        )
        await retention.sweep()
        left = {file.sha256 for file in await self.media.stored()}
        return [number for number, name in enumerate(self.names) if name in left]

    def removed(self, reason: str) -> float | None:
        return self.metrics.registry.get_sample_value("reeltalk_media_removed_total", {"reason": reason})


@pytest.fixture
async def kept(redis: StoreClient, tmp_path: Path) -> AsyncIterator[Kept]:
    yield Kept(redis, tmp_path / "media")


async def test_old_files_go_and_their_records_stay(kept: Kept) -> None:
    for _ in range(4):
        await kept.add()
    assert await kept.sweep(media_ttl=3 * HOUR - 60) == [0, 1]
    assert kept.removed("ttl") == 2
    assert await kept.videos.get(TENANT, video_id(TENANT, kept.names[3])) is not None


async def test_over_the_quota_the_oldest_that_nobody_needs_goes_first(kept: Kept) -> None:
    await kept.add()
    await kept.add()
    await kept.add(in_session=True)
    await kept.add(in_session=True)
    assert await kept.sweep(media_max_bytes=4000) == [0, 1, 2, 3]
    assert await kept.sweep(media_max_bytes=3999) == [0, 2, 3]
    assert await kept.sweep(media_max_bytes=1999) == [2]
    assert kept.removed("quota") == 3
    assert kept.metrics.registry.get_sample_value("reeltalk_media_bytes") == 1000


async def test_what_is_being_prepared_stays(kept: Kept) -> None:
    await kept.add(status="processing")
    await kept.add(status="uploaded")
    await kept.add()
    assert await kept.sweep(media_ttl=60, media_max_bytes=1) == [0, 1]


async def test_one_replica_at_a_time_looks(kept: Kept, redis: StoreClient) -> None:
    await kept.add()
    await Leases(redis, seconds=9).acquire("lease:retention", "rep_other")
    assert await kept.sweep(media_ttl=60) == [0]


async def test_pieces_that_nobody_went_on_with_go_after_their_record(kept: Kept, tmp_path: Path) -> None:
    """Without any bound on the files themselves, and also where another replica looks at those."""
    await Leases(kept.redis, seconds=9).acquire("lease:retention", "rep_other")
    for name, age in (("upl_old", HOUR + 120), ("upl_late", HOUR + 5), ("upl_new", 0)):
        await kept.partial_files.create(name)
        os.utime(tmp_path / "media" / "partial" / name, (time.time() - age,) * 2)
    await kept.add()
    assert await kept.sweep(upload_expiry=HOUR) == [0]
    assert sorted(path.name for path in (tmp_path / "media" / "partial").iterdir()) == ["upl_late", "upl_new"]
