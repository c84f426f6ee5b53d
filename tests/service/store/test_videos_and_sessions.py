"""Records of videos and sessions are stored once, listed newest first, and erased completely."""

import asyncio

import pytest

from service.ids import video_id
from service.store import keys
from service.store.connection import StoreClient
from service.store.event_log import LogEvent
from service.store.log_follower import LogFollower
from service.store.records import MessageRecord
from service.store.sessions import SessionStore
from service.store.videos import VideoStore
from tests.service.answers.conversations import TENANT, accept, answer_record, session_record, video_record

VIDEO = video_record()


async def test_a_video_is_created_once_however_many_upload_it(redis: StoreClient) -> None:
    videos = VideoStore(redis, LogFollower(redis))
    named = [VIDEO.model_copy(update={"filename": f"{i}.mp4"}) for i in range(5)]
    created = await asyncio.gather(*(videos.create(TENANT, record) for record in named))
    assert created.count(True) == 1
    assert await videos.get(TENANT, VIDEO.id) == named[created.index(True)]


async def test_an_erased_video_is_not_restored_by_later_writes(redis: StoreClient) -> None:
    videos = VideoStore(redis, LogFollower(redis))
    await videos.create(TENANT, VIDEO)
    assert await videos.update(TENANT, VIDEO.model_copy(update={"status": "processing"}))
    assert await videos.remember_features(TENANT, VIDEO.id, "features:one")
    assert await videos.erase(TENANT, VIDEO.id)
    assert not await videos.update(TENANT, VIDEO)
    assert not await videos.remember_features(TENANT, VIDEO.id, "features:two")
    await videos.progress(TENANT, VIDEO.id, LogEvent(1, "encode", {}))
    assert not await videos.erase(TENANT, VIDEO.id)
    assert await redis.keys() == []


async def test_erasing_a_video_erases_its_progress_and_feature_keys(redis: StoreClient) -> None:
    videos = VideoStore(redis, LogFollower(redis))
    await videos.create(TENANT, VIDEO)
    await videos.progress(TENANT, VIDEO.id, LogEvent(1, "decode", {}))
    await videos.remember_features(TENANT, VIDEO.id, "features:one")
    assert await videos.features_keys(TENANT, VIDEO.id) == ["features:one"]  # the cache erases the features themselves
    await videos.erase(TENANT, VIDEO.id)
    assert await redis.keys() == []


async def test_the_progress_of_a_video_can_be_followed(redis: StoreClient) -> None:
    follower = LogFollower(redis)
    follower.start()
    videos = VideoStore(redis, follower)
    await videos.create(TENANT, VIDEO)
    await videos.progress(TENANT, VIDEO.id, LogEvent(1, "decode", {}))
    async with videos.follow(TENANT, VIDEO.id, after=0) as followed:
        assert [event.name for event in await followed.next(timeout=2)] == ["decode"]
        await videos.progress(TENANT, VIDEO.id, LogEvent(2, "ready", {}))
        assert [event.name for event in await followed.next(timeout=2)] == ["ready"]
    await follower.close()


async def test_erasing_a_session_erases_its_answers_and_no_other_session(redis: StoreClient) -> None:
    sessions = SessionStore(redis)
    kept, erased = session_record(VIDEO.id), session_record(VIDEO.id)
    for session in (kept, erased):
        await sessions.create(TENANT, session)
        assert await accept(redis, answer_record(session.id))
    assert await VideoStore(redis, LogFollower(redis)).session_ids(TENANT, VIDEO.id) == sorted([kept.id, erased.id])

    assert await sessions.erase(TENANT, erased)
    assert not await sessions.erase(TENANT, erased)

    assert await VideoStore(redis, LogFollower(redis)).session_ids(TENANT, VIDEO.id) == [kept.id]
    assert await redis.keys(f"*{erased.id}*") == []
    assert len(await redis.keys("answer:*:events")) == 1


async def test_a_conversation_is_a_session_with_its_messages_in_order(redis: StoreClient) -> None:
    sessions, session = SessionStore(redis), session_record(VIDEO.id)
    assert await sessions.conversation(TENANT, session.id) is None
    await sessions.create(TENANT, session)
    assert await sessions.conversation(TENANT, session.id) == (session, [], None)
    said = [
        MessageRecord(id=f"msg_{number}", role="user", content="…", created_at=0.0, answer_id="ans_1")
        for number in range(12)
    ]
    for number, message in enumerate(said):
        await redis.hset(keys.messages(TENANT, session.id), str(number), message.model_dump_json())
    assert await sessions.conversation(TENANT, session.id) == (session, said, None)
    assert await sessions.messages(TENANT, session.id) == said


async def test_a_tenant_cannot_access_records_of_another(redis: StoreClient) -> None:
    videos, sessions = VideoStore(redis, LogFollower(redis)), SessionStore(redis)
    session = session_record(VIDEO.id)
    await videos.create(TENANT, VIDEO)
    await sessions.create(TENANT, session)
    assert await videos.get("other", VIDEO.id) is None
    assert await sessions.get("other", session.id) is None
    assert (await videos.page("other", limit=10, after=None)).ids == ()
    assert not await videos.erase("other", VIDEO.id)
    assert await videos.get(TENANT, VIDEO.id) == VIDEO


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages_contain_every_item_once_newest_first(redis: StoreClient, limit: int) -> None:
    videos = VideoStore(redis, LogFollower(redis))
    ids = [video_id(TENANT, str(number)) for number in range(7)]
    for number, made in enumerate(ids):
        await videos.create(TENANT, video_record(id=made, created_at=float(number)))
    listed: list[str] = []
    page = await videos.page(TENANT, limit=limit, after=None)
    listed += page.ids
    while page.has_more:
        page = await videos.page(TENANT, limit=limit, after=listed[-1])
        assert page.ids
        listed += page.ids
    assert listed == ids[::-1]
    assert [record.id for record in await videos.get_many(TENANT, listed)] == listed


async def test_missing_records_are_left_out_of_a_list(redis: StoreClient) -> None:
    videos = VideoStore(redis, LogFollower(redis))
    await videos.create(TENANT, VIDEO)
    assert await videos.get_many(TENANT, [video_id(TENANT, "gone"), VIDEO.id]) == [VIDEO]
    assert await videos.get_many(TENANT, []) == []


async def test_the_stored_bytes_are_the_sum_over_the_records(redis: StoreClient) -> None:
    store = VideoStore(redis, LogFollower(redis))
    one, two = video_record(bytes=3_000_000_000), video_record(id="vid_" + "2" * 32, bytes=7)
    assert await store.stored_bytes(TENANT) == 0
    assert [await store.create(TENANT, record) for record in (one, one, two)] == [True, False, True]
    assert await store.stored_bytes(TENANT) == 3_000_000_007
    await store.update(TENANT, one.model_copy(update={"status": "ready"}))
    assert [await store.erase(TENANT, one.id) for _ in range(2)] == [True, False]
    assert await store.stored_bytes(TENANT) == 7
    assert await store.stored_bytes("another") == 0


async def test_concurrent_reservations_stay_within_the_limit(redis: StoreClient) -> None:
    store = VideoStore(redis, LogFollower(redis))
    await store.create(TENANT, video_record(bytes=40))
    tried = [store.reserve(TENANT, f"upload {number}", 20, limit=100, seconds=60) for number in range(10)]
    assert sum(await asyncio.gather(*tried)) == 3
    assert await store.reserve("another", "upload", 20, limit=100, seconds=60)


async def test_reservations_can_change_and_end_by_release_or_by_the_record(redis: StoreClient) -> None:
    store = VideoStore(redis, LogFollower(redis))

    async def reserve(name: str, num_bytes: int) -> bool:
        return await store.reserve(TENANT, name, num_bytes, limit=100, seconds=60)

    assert await reserve("a", 90)
    assert not await reserve("b", 20)
    assert await reserve("a", 80), "replaces the 90"
    assert await reserve("b", 20)
    assert not await reserve("a", 81)
    await store.release(TENANT, "b")
    assert await store.create(TENANT, video_record(bytes=70), reservation="a")
    assert await reserve("c", 30), "70 are stored and none reserved"
    assert not await reserve("d", 1)


async def test_reservations_expire_unless_they_are_prolonged(redis: StoreClient) -> None:
    store = VideoStore(redis, LogFollower(redis))
    assert await store.reserve(TENANT, "of the dead", 50, limit=100, seconds=1)
    assert await store.reserve(TENANT, "of the living", 50, limit=100, seconds=1)
    assert await store.prolong(TENANT, "of the living", seconds=60)
    assert not await store.reserve(TENANT, "new", 50, limit=100, seconds=60)
    await asyncio.sleep(2.1)
    assert await store.reserve(TENANT, "new", 50, limit=100, seconds=60)
    assert not await store.reserve(TENANT, "too many", 1, limit=100, seconds=60)
    assert not await store.prolong(TENANT, "of the dead", seconds=60)
    await store.release(TENANT, "of the living")
    assert 0 < await redis.ttl(f"videos:{TENANT}:reserved") <= 60
