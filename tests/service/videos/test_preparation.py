"""Features are computed once, however many ask at however many replicas, and for nobody once the video is erased."""

import asyncio
import gc
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from service.decoding.decoder import Decoder
from service.errors import ServiceError, Unavailable
from service.ids import video_id
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.connection import StoreClient, connect
from service.store.event_log import LogEvent
from service.store.features import FeatureCache
from service.store.leases import Leases
from service.store.media import MediaStore
from service.store.records import FrameRequest, VideoRecord
from service.store.videos import VideoStore
from service.videos.preparation import Encoding
from service.workers.pool import Pool
from tests.clips import h264_mp4
from tests.service.answers.conversations import TENANT, video_record
from tests.service.workers.test_pool import PATIENCE, pool_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[Pool]:
    async with pool_of(1) as pool:
        await pool.info(timeout=PATIENCE)
        yield pool


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def decoder() -> AsyncIterator[Decoder]:
    decoder = Decoder(Settings().video_limits, 30)
    await decoder.start()
    yield decoder
    await decoder.close()


@pytest_asyncio.fixture(loop_scope="module")
async def store(redis_url: str) -> AsyncIterator[StoreClient]:
    client = connect(redis_url)
    await client.flushall()
    yield client
    await client.aclose()


class Replica:
    """The encoding part of a replica, and what it has measured."""

    def __init__(self, pool: Pool, decoder: Decoder, store: StoreClient, media: MediaStore) -> None:
        self.metrics = Metrics()
        self.encoding = Encoding(
            pool=pool,
            decoder=decoder,
            videos=VideoStore(store),
            features=FeatureCache(store, ttl=100, metrics=self.metrics),
            media=media,
            leases=Leases(store, seconds=3),
            metrics=self.metrics,
        )

    @property
    def num_encoded(self) -> float:
        return self.metrics.registry.get_sample_value("reeltalk_video_encode_seconds_count") or 0.0


async def uploaded(store: StoreClient, media: MediaStore, clip: Path) -> VideoRecord:
    content = await asyncio.to_thread(clip.read_bytes)
    async with media.spool() as spool:
        spool.write(content)
        sha256 = await media.commit(spool, TENANT)
    assert sha256 == hashlib.sha256(content).hexdigest()
    record = video_record(id=video_id(TENANT, sha256), sha256=sha256, bytes=len(content))
    await VideoStore(store).create(TENANT, record)
    return record


@pytest.fixture
def media(tmp_path: Path) -> MediaStore:
    media = MediaStore(tmp_path / "media")
    media.open()
    return media


async def test_all_askers_at_all_replicas_share_one_encoding(
    pool: Pool, decoder: Decoder, store: StoreClient, media: MediaStore, tmp_path: Path
) -> None:
    record = await uploaded(store, media, h264_mp4(tmp_path / "clip.mp4", frames=30))
    replicas = [Replica(pool, decoder, store, media) for _ in range(3)]
    asking = [replica.encoding.ensure(TENANT, record, FrameRequest()) for replica in replicas for _ in range(3)]
    answers = await asyncio.wait_for(asyncio.gather(*asking), PATIENCE)
    assert len({packed.blob for _, packed in answers}) == 1
    assert sum(replica.num_encoded for replica in replicas) == 1
    ready = await VideoStore(store).get(TENANT, record.id)
    assert ready is not None
    assert (ready.status, ready.num_frames, len(ready.frames)) == ("ready", 30, 8)


async def test_another_choice_of_frames_is_another_encoding(
    pool: Pool, decoder: Decoder, store: StoreClient, media: MediaStore, tmp_path: Path
) -> None:
    record = await uploaded(store, media, h264_mp4(tmp_path / "clip.mp4", frames=30))
    replica = Replica(pool, decoder, store, media)
    (key, whole), (other_key, half) = [
        await replica.encoding.ensure(TENANT, record, frames) for frames in (FrameRequest(), FrameRequest(end=0.5))
    ]
    assert key != other_key
    assert whole.frame_indices != half.frame_indices
    assert replica.num_encoded == 2


async def test_of_a_video_that_is_erased_meanwhile_nothing_is_kept(
    pool: Pool, decoder: Decoder, store: StoreClient, media: MediaStore, tmp_path: Path
) -> None:
    record = await uploaded(store, media, h264_mp4(tmp_path / "clip.mp4", frames=30))
    replica = Replica(pool, decoder, store, media)
    flight = await replica.encoding.begin(TENANT, record)
    await asyncio.wait_for(flight.probed, PATIENCE)
    await VideoStore(store).erase(TENANT, record.id)
    await media.erase(TENANT, record.sha256)
    assert flight.task is not None
    with pytest.raises(ServiceError):
        await asyncio.wait_for(flight.task, PATIENCE)
    assert await store.keys() == []
    assert [path for path in (tmp_path / "media").rglob("*") if record.sha256 in str(path)] == []


async def test_progress_that_cannot_be_told_costs_the_video_nothing(
    pool: Pool,
    decoder: Decoder,
    store: StoreClient,
    media: MediaStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even a traceback in the log."""
    tell = VideoStore.progress

    async def refused(self: VideoStore, tenant: str, video_id: str, event: LogEvent) -> None:
        if event.name == "decode":
            raise Unavailable("store_unavailable", "Away for a moment.")
        await tell(self, tenant, video_id, event)

    monkeypatch.setattr(VideoStore, "progress", refused)
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    record = await uploaded(store, media, h264_mp4(tmp_path / "clip.mp4", frames=30))
    flight = await Replica(pool, decoder, store, media).encoding.begin(TENANT, record)
    assert flight.task is not None
    await asyncio.wait_for(flight.task, PATIENCE)
    ready = await VideoStore(store).get(TENANT, record.id)
    assert ready is not None
    assert (ready.status, ready.num_frames) == ("ready", 30)
    gc.collect()
    await asyncio.sleep(0)
    assert unheard == []
