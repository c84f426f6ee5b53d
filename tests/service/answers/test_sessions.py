"""A session is about what its model takes: so many frames of videos, or no video at all; the refusal comes first."""

from dataclasses import replace
from pathlib import Path

import pytest

from service.answers.sessions import Sessions
from service.errors import InvalidRequest
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.connection import StoreClient
from service.store.records import FrameRequest, SessionRecord
from service.store.stores import build_stores
from service.workers.protocol import ModelInfo
from tests.service.answers.conversations import TENANT, video_record
from tests.service.workers.test_dispatcher import INFO

assert INFO.inputs is not None
EIGHT = replace(INFO, name="eight", inputs=replace(INFO.inputs, min_frames=8, max_frames=8))
READER = replace(INFO, name="reader", inputs=None, parts=(), num_video_tokens=0)
VIDEO = video_record()


class OneModel:
    """Accepts every session for one model."""

    def __init__(self, info: ModelInfo) -> None:
        self._info = info

    async def model(self, name: str | None) -> ModelInfo:
        assert name in {None, self._info.name}
        return self._info


async def opened(redis: StoreClient, folder: Path, info: ModelInfo, *video_ids: str, **frames: float) -> SessionRecord:
    stores = build_stores(Settings(data_dir=folder), redis, Metrics())
    await stores.videos.create(TENANT, VIDEO)
    sessions = Sessions(
        acceptance=OneModel(info),  # type: ignore[arg-type]
        runner=None,  # type: ignore[arg-type]  # nothing is asked here
        sessions=stores.sessions,
        videos=stores.videos,
        leases=stores.leases,
        idempotency=stores.idempotency,
    )
    request = FrameRequest.model_validate(frames)
    return await sessions.create(TENANT, video_ids=video_ids, model=info.name, system="", frames=request)


async def refusal(redis: StoreClient, folder: Path, info: ModelInfo, *video_ids: str, **frames: float) -> str | None:
    with pytest.raises(InvalidRequest) as refused:
        await opened(redis, folder, info, *video_ids, **frames)
    assert refused.value.status == 422
    return refused.value.param


async def test_a_session_names_its_model_and_the_frames_that_it_takes(redis: StoreClient, tmp_path: Path) -> None:
    record = await opened(redis, tmp_path, EIGHT, VIDEO.id, count=8, end=2.0)
    assert (record.model, record.frames.count) == ("eight", 8)
    assert (await opened(redis, tmp_path, INFO, VIDEO.id)).frames == FrameRequest()


@pytest.mark.parametrize("count", [1, 7, 9, 100])
async def test_a_count_of_frames_that_the_model_does_not_take_is_refused(
    redis: StoreClient, tmp_path: Path, count: int
) -> None:
    assert await refusal(redis, tmp_path, EIGHT, VIDEO.id, count=count) == "frames.count"
    with pytest.raises(InvalidRequest, match="takes exactly 8 frames"):
        await opened(redis, tmp_path, EIGHT, VIDEO.id, count=count)


async def test_a_model_that_sees_videos_needs_one_and_another_takes_none(redis: StoreClient, tmp_path: Path) -> None:
    assert await refusal(redis, tmp_path, INFO) == "video_ids"
    assert await refusal(redis, tmp_path, READER, VIDEO.id) == "video_ids"
    assert await refusal(redis, tmp_path, READER, count=3) == "frames"
    assert (await opened(redis, tmp_path, READER)).video_ids == ()
