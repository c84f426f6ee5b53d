"""Features are computed once for all requests at all replicas, and not kept once the video is erased."""

import asyncio
import gc
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from model.features import PackedFeatures
from model.video.spec import VideoLimits
from service.decoding.decoder import Decoder
from service.errors import Gone, InvalidRequest, NotFound, ServiceError, StorageUnavailable, from_code
from service.ids import video_id
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.connection import StoreClient, connect
from service.store.event_log import LogEvent
from service.store.records import FrameRequest, VideoRecord
from service.store.stores import Stores, build_stores
from service.store.videos import VideoStore
from service.videos.preparation import Preparation
from service.videos.progress import ProgressReporter, follow_progress
from service.workers.pools import Pools
from service.workers.protocol import Encode, Encoded
from tests.clips import h264_mp4
from tests.service.answers.conversations import TENANT, video_record
from tests.service.workers.pools import PATIENCE, pools_of
from tests.sound_clips import damaged_sound, write_clip

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pools() -> AsyncIterator[Pools]:
    """Pools of the model that ships, of the same under another name, and of another family."""
    async with pools_of("tiny=videochat:", "twin=videochat:", "other=video-chatgpt:") as pools:
        for model in pools:
            await model.pool.info(timeout=PATIENCE)
        yield pools


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def decoder() -> AsyncIterator[Decoder]:
    decoder = Decoder(VideoLimits(), 30)
    await decoder.start()
    yield decoder
    await decoder.close()


@pytest_asyncio.fixture(loop_scope="module")
async def redis(redis_url: str) -> AsyncIterator[StoreClient]:
    client = connect(redis_url)
    await client.flushall()
    yield client
    await client.aclose()


class Replica:
    """The part of a replica that prepares videos, and its metrics."""

    def __init__(self, pools: Pools, decoder: Decoder, redis: StoreClient, data_dir: Path) -> None:
        self.metrics = Metrics()
        self.stores = build_stores(Settings(data_dir=data_dir, lease_seconds=3), redis, self.metrics)
        self.preparation = Preparation(self.stores, pools=pools, decoder=decoder, metrics=self.metrics)

    @property
    def num_encoded(self) -> float:
        return sum(self.num_encoded_by(model) for model in ("tiny", "twin", "other"))

    def num_encoded_by(self, model: str) -> float:
        name = "reeltalk_video_encode_seconds_count"
        return self.metrics.registry.get_sample_value(name, {"model_name": model}) or 0.0


async def uploaded(stores: Stores, clip: Path) -> VideoRecord:
    content = await asyncio.to_thread(clip.read_bytes)
    async with stores.media.spool() as spool:
        spool.write(content)
        sha256 = await stores.media.commit(spool, TENANT)
    assert sha256 == hashlib.sha256(content).hexdigest()
    record = video_record(id=video_id(TENANT, sha256), sha256=sha256, bytes=len(content))
    await stores.videos.create(TENANT, record)
    return record


async def test_all_requests_at_all_replicas_share_one_computation(
    pools: Pools, decoder: Decoder, redis: StoreClient, tmp_path: Path
) -> None:
    replicas = [Replica(pools, decoder, redis, tmp_path) for _ in range(3)]
    record = await uploaded(replicas[0].stores, h264_mp4(tmp_path / "clip.mp4", frames=30))
    requests = [
        replica.preparation.ensure(TENANT, record, FrameRequest(), model="tiny")
        for replica in replicas
        for _ in range(3)
    ]
    results = await asyncio.wait_for(asyncio.gather(*requests), PATIENCE)
    assert len({packed.blob for _, packed in results}) == 1
    assert sum(replica.num_encoded for replica in replicas) == 1
    ready = await replicas[0].stores.videos.get(TENANT, record.id)
    assert ready is not None
    assert (ready.status, ready.num_frames, len(ready.frames)) == ("ready", 30, 8)


async def test_a_model_that_hears_finds_out_that_the_sound_is_damaged_also_if_it_is_not_the_default(
    decoder: Decoder, redis: StoreClient, tmp_path: Path
) -> None:
    async with pools_of("tiny=videochat:", "hearing=video-llama:") as pools:
        for model in pools:
            await model.pool.info(timeout=PATIENCE)
        replica = Replica(pools, decoder, redis, tmp_path)
        clip = damaged_sound(write_clip(tmp_path / "whole.mp4"), tmp_path / "damaged.mp4")
        record = await uploaded(replica.stores, clip)
        found = []
        for name in ("tiny", "hearing"):
            await asyncio.wait_for(replica.preparation.ensure(TENANT, record, FrameRequest(), model=name), PATIENCE)
            stored = await replica.stores.videos.get(TENANT, record.id)
            assert stored is not None
            assert stored.status == "ready"
            record = stored
            found.append((stored.audio is not None, stored.audio_error and stored.audio_error.code))
        assert found == [(True, None), (False, "undecodable_audio")]


async def test_for_a_model_that_sees_no_videos_a_file_is_probed_once_and_is_ready_without_frames(
    decoder: Decoder, redis: StoreClient, tmp_path: Path
) -> None:
    async with pools_of("reader=mobillama:", workers="generate") as pools:
        await pools.info(None)
        replicas = [Replica(pools, decoder, redis, tmp_path) for _ in range(2)]
        videos = replicas[0].stores.videos
        record = await uploaded(replicas[0].stores, h264_mp4(tmp_path / "clip.mp4", frames=30))
        jobs = [await replica.preparation.start(TENANT, record) for replica in replicas]
        assert [await asyncio.wait_for(job.task, PATIENCE) for job in jobs if job.task is not None] == [None, None]
        ready = await videos.get(TENANT, record.id)
        assert ready is not None
        assert (ready.status, ready.num_frames, ready.codec, ready.frames) == ("ready", 30, "h264", ())
        last = await videos.last_progress(TENANT, record.id)
        assert last is not None
        assert (last.number, last.name) == (2, "ready"), "one replica has decoded one frame"
        assert await redis.keys("features:*") == []

        (tmp_path / "text.mp4").write_text("no video")
        other = await uploaded(replicas[0].stores, tmp_path / "text.mp4")
        job = await replicas[0].preparation.start(TENANT, other)
        assert job.task is not None
        with pytest.raises(ServiceError):
            await asyncio.wait_for(job.task, PATIENCE)
        failed = await videos.get(TENANT, other.id)
        assert failed is not None
        assert (failed.status, failed.error and failed.error.code) == ("failed", "not_a_video")


async def test_another_choice_of_frames_is_computed_separately(
    pools: Pools, decoder: Decoder, redis: StoreClient, tmp_path: Path
) -> None:
    replica = Replica(pools, decoder, redis, tmp_path)
    record = await uploaded(replica.stores, h264_mp4(tmp_path / "clip.mp4", frames=30))
    (key, whole), (other_key, half) = [
        await replica.preparation.ensure(TENANT, record, frames, model="tiny")
        for frames in (FrameRequest(), FrameRequest(end=0.5))
    ]
    assert key != other_key
    assert whole.frame_indices != half.frame_indices
    assert replica.num_encoded == 2


async def test_models_with_one_encoder_share_their_features(
    pools: Pools, decoder: Decoder, redis: StoreClient, tmp_path: Path
) -> None:
    replica = Replica(pools, decoder, redis, tmp_path)
    record = await uploaded(replica.stores, h264_mp4(tmp_path / "clip.mp4", frames=30))
    names = ("tiny", "twin", "other")
    requests = [replica.preparation.ensure(TENANT, record, FrameRequest(), model=name) for name in names]
    (key, packed), twin, (other_key, _) = await asyncio.wait_for(asyncio.gather(*requests), PATIENCE)
    assert twin == (key, packed)
    assert other_key != key
    assert [replica.num_encoded_by(name) for name in names] == [1, 0, 1]
    twin_again = await replica.preparation.ensure(TENANT, record, FrameRequest(), model="twin")
    assert twin_again == (key, packed)
    assert replica.num_encoded == 2


async def test_a_record_is_shown_as_it_is_for_each_model(
    pools: Pools, decoder: Decoder, redis: StoreClient, tmp_path: Path
) -> None:
    replica = Replica(pools, decoder, redis, tmp_path)
    record = await uploaded(replica.stores, h264_mp4(tmp_path / "clip.mp4", frames=30))

    async def shown(model: str) -> tuple[str, int]:
        current = await replica.stores.videos.get(TENANT, record.id)
        assert current is not None
        view = await replica.preparation.view(TENANT, current, model=model)
        return view.status, len(view.frames)

    assert [await shown(name) for name in ("tiny", "twin", "other")] == [("uploaded", 0)] * 3
    await replica.preparation.ensure(TENANT, record, FrameRequest(), model="twin")
    assert [await shown(name) for name in ("tiny", "twin", "other")] == [("ready", 8), ("ready", 8), ("uploaded", 0)]
    await replica.preparation.ensure(TENANT, record, FrameRequest(), model="other")
    assert [await shown(name) for name in ("tiny", "other")] == [("ready", 8), ("ready", 30)]
    with pytest.raises(NotFound, match="no model 'huge'; it has 'tiny', 'twin', 'other'"):
        await shown("huge")


async def until_idle(replica: Replica) -> None:
    async with asyncio.timeout(PATIENCE):
        while replica.preparation.num_jobs:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_record_of_another_default_is_not_shown_as_one_of_this_model(
    pools: Pools, decoder: Decoder, redis: StoreClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica(pools, decoder, redis, tmp_path)
    record = await uploaded(replica.stores, h264_mp4(tmp_path / "clip.mp4", frames=30))

    async def current() -> VideoRecord:
        found = await replica.stores.videos.get(TENANT, record.id)
        assert found is not None
        return found

    async def shown(model: str) -> tuple[str, int]:
        view = await replica.preparation.view(TENANT, await current(), model=model)
        return view.status, len(view.frames)

    monkeypatch.setattr(pools, "default", "other")  # another replica's default
    await replica.preparation.start(TENANT, record)
    await until_idle(replica)
    assert ((await current()).status, len((await current()).frames)) == ("ready", 30)
    monkeypatch.setattr(pools, "default", "tiny")
    assert [await shown(name) for name in ("tiny", "other")] == [("uploaded", 0), ("ready", 30)]

    # the same bytes are uploaded here
    replied = await replica.preparation.start_missing(TENANT, await current())
    assert (replied.status, replied.frames) == ("processing", ())
    assert await shown("tiny") == ("processing", 0)
    await until_idle(replica)
    assert [await shown(name) for name in ("tiny", "other")] == [("ready", 8), ("ready", 30)]
    assert len((await current()).frames) == 8
    again = await replica.preparation.start_missing(TENANT, await current())
    assert (again, replica.preparation.num_jobs) == (await current(), 0)
    assert replica.num_encoded == 2


async def test_features_that_another_replica_computes_are_shown_as_in_preparation(
    pools: Pools, decoder: Decoder, redis: StoreClient, tmp_path: Path
) -> None:
    computing, asked = (Replica(pools, decoder, redis, tmp_path) for _ in range(2))
    record = await uploaded(asked.stores, h264_mp4(tmp_path / "clip.mp4", frames=30))
    job = await computing.preparation.start(TENANT, record)
    await asyncio.wait_for(job.probed, PATIENCE)
    assert (await asked.preparation.view(TENANT, record, model="twin")).status == "processing"
    await until_idle(computing)


@pytest.mark.parametrize("code", ["worker_lost", "model_unavailable"])
async def test_features_are_computed_by_another_model_that_waits_if_the_first_is_unloaded(
    pools: Pools, decoder: Decoder, redis: StoreClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    replica, is_encoding, is_unloaded = Replica(pools, decoder, redis, tmp_path), asyncio.Event(), asyncio.Event()
    record = await uploaded(replica.stores, h264_mp4(tmp_path / "clip.mp4", frames=30))
    encode = pools.encode

    async def unloaded(command: Encode, *, model: str) -> Encoded:
        if model == "twin":
            is_encoding.set()
            await is_unloaded.wait()
            raise from_code(code, "The model was unloaded.")
        return await encode(command, model=model)

    monkeypatch.setattr(pools, "encode", unloaded)
    first = asyncio.create_task(replica.preparation.ensure(TENANT, record, FrameRequest(), model="twin"))
    await asyncio.wait_for(is_encoding.wait(), PATIENCE)
    second = asyncio.create_task(replica.preparation.ensure(TENANT, record, FrameRequest(), model="tiny"))
    await asyncio.sleep(0.1)
    is_unloaded.set()
    assert await asyncio.wait_for(second, PATIENCE) == await first
    assert [replica.num_encoded_by(name) for name in ("tiny", "twin")] == [1, 0]
    ready = await replica.stores.videos.get(TENANT, record.id)
    assert ready is not None
    assert ready.status == "ready"


async def test_a_question_that_comes_after_the_workers_of_another_model_were_lost_is_not_failed_with_them(
    pools: Pools, decoder: Decoder, redis: StoreClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica(pools, decoder, redis, tmp_path)
    record = await uploaded(replica.stores, h264_mp4(tmp_path / "clip.mp4", frames=30))
    encode, report = pools.encode, ProgressReporter.report
    late: list[asyncio.Task[tuple[str, PackedFeatures]]] = []

    async def lost(command: Encode, *, model: str) -> Encoded:
        if model == "twin":
            raise from_code("worker_lost", "Lost.")
        return await encode(command, model=model)

    async def ask_late(self: ProgressReporter, stage: str, fraction: float, **error: Any) -> None:
        if stage == "failed" and not late:
            late.append(asyncio.create_task(replica.preparation.ensure(TENANT, record, FrameRequest(), model="tiny")))
            await asyncio.sleep(0.1)
        await report(self, stage, fraction, **error)

    monkeypatch.setattr(pools, "encode", lost)
    monkeypatch.setattr(ProgressReporter, "report", ask_late)
    with pytest.raises(ServiceError):
        await asyncio.wait_for(replica.preparation.ensure(TENANT, record, FrameRequest(), model="twin"), PATIENCE)
    await asyncio.wait_for(late[0], PATIENCE)
    assert replica.num_encoded_by("tiny") == 1


async def test_an_upload_prepares_the_features_of_eager_models_too(
    pools: Pools, decoder: Decoder, redis: StoreClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica(pools, decoder, redis, tmp_path)
    other = pools.get("other")
    monkeypatch.setattr(other, "spec", replace(other.spec, is_eager=True))
    record = await uploaded(replica.stores, h264_mp4(tmp_path / "clip.mp4", frames=30))
    await replica.preparation.start(TENANT, record)
    await until_idle(replica)
    assert (replica.num_encoded_by("tiny"), replica.num_encoded_by("other")) == (1, 1)
    assert (await replica.preparation.view(TENANT, record, model="other")).status == "ready"


async def test_frames_that_a_model_does_not_take_are_refused(
    pools: Pools, decoder: Decoder, redis: StoreClient, tmp_path: Path
) -> None:
    replica = Replica(pools, decoder, redis, tmp_path)
    record = await uploaded(replica.stores, h264_mp4(tmp_path / "clip.mp4", frames=30))
    with pytest.raises(InvalidRequest) as refused:
        await replica.preparation.ensure(TENANT, record, FrameRequest(count=101), model="other")
    assert refused.value.param == "frames.count"
    assert replica.preparation.num_jobs == 0


async def test_nothing_is_kept_of_a_video_that_is_erased_meanwhile(
    pools: Pools, decoder: Decoder, redis: StoreClient, tmp_path: Path
) -> None:
    replica = Replica(pools, decoder, redis, tmp_path)
    record = await uploaded(replica.stores, h264_mp4(tmp_path / "clip.mp4", frames=30))
    job = await replica.preparation.start(TENANT, record)
    await asyncio.wait_for(job.probed, PATIENCE)
    await replica.stores.videos.erase(TENANT, record.id)
    await replica.stores.media.erase(TENANT, record.sha256)
    assert job.task is not None
    with pytest.raises(ServiceError):
        await asyncio.wait_for(job.task, PATIENCE)
    assert await redis.keys() == []
    assert [path for path in (tmp_path / "media").rglob("*") if record.sha256 in str(path)] == []


async def test_a_video_gets_ready_although_its_progress_cannot_be_written(
    pools: Pools,
    decoder: Decoder,
    redis: StoreClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no traceback is logged."""
    write = VideoStore.progress

    async def refused(self: VideoStore, tenant: str, video_id: str, event: LogEvent) -> None:
        if event.name == "decode":
            raise StorageUnavailable("store_unavailable", "Away for a moment.")
        await write(self, tenant, video_id, event)

    monkeypatch.setattr(VideoStore, "progress", refused)
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    replica = Replica(pools, decoder, redis, tmp_path)
    record = await uploaded(replica.stores, h264_mp4(tmp_path / "clip.mp4", frames=30))
    job = await replica.preparation.start(TENANT, record)
    assert job.task is not None
    await asyncio.wait_for(job.task, PATIENCE)
    ready = await replica.stores.videos.get(TENANT, record.id)
    assert ready is not None
    assert (ready.status, ready.num_frames) == ("ready", 30)
    gc.collect()
    await asyncio.sleep(0)
    assert unhandled == []


async def test_a_video_is_available_while_its_file_or_its_features_are_left(
    pools: Pools, decoder: Decoder, redis: StoreClient, tmp_path: Path
) -> None:
    replica = Replica(pools, decoder, redis, tmp_path)
    stores, preparation = replica.stores, replica.preparation
    with_file = await uploaded(stores, h264_mp4(tmp_path / "first.mp4", frames=30))
    with_features = await uploaded(stores, h264_mp4(tmp_path / "second.mp4", frames=24))
    await asyncio.wait_for(preparation.ensure(TENANT, with_features, FrameRequest(), model="tiny"), PATIENCE)
    await stores.media.erase(TENANT, with_features.sha256)
    both = [with_file, with_features]
    await preparation.check_available(TENANT, both, FrameRequest(), model="tiny")
    with pytest.raises(Gone):
        await preparation.check_available(TENANT, both, FrameRequest(end=0.5), model="tiny")
    await preparation.erase_features(TENANT, with_features.id)
    with pytest.raises(Gone):
        await preparation.check_available(TENANT, both, FrameRequest(), model="tiny")
    await preparation.check_available(TENANT, [with_file], FrameRequest(), model="tiny")


async def test_progress_can_be_followed_to_its_end_also_after_its_log_has_expired(
    pools: Pools, decoder: Decoder, redis: StoreClient, tmp_path: Path
) -> None:
    replica = Replica(pools, decoder, redis, tmp_path)
    record = await uploaded(replica.stores, h264_mp4(tmp_path / "clip.mp4", frames=30))
    videos = replica.stores.videos

    async def read_record() -> VideoRecord:
        current = await videos.get(TENANT, record.id)
        assert current is not None
        return current

    async def followed(after: int) -> list[LogEvent]:
        batches = follow_progress(videos, TENANT, record.id, after=after, read_record=read_record)
        return [event async for batch in batches for event in batch]

    replica.stores.follower.start()
    following = asyncio.create_task(followed(0))
    await replica.preparation.start(TENANT, record)
    events = await asyncio.wait_for(following, PATIENCE)
    assert [event.name for event in events] == [*["decode"] * 8, "encode", "encode", "ready"]
    assert [event.number for event in events] == list(range(1, 12))
    assert [event.name for event in await followed(9)] == ["encode", "ready"]
    await videos.restart_progress(TENANT, record.id)
    assert [(event.number, event.name) for event in await followed(11)] == [(12, "ready")]
    await replica.stores.follower.close()
