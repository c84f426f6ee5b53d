"""Records are kept once, listed newest first, and erased without a trace."""

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


async def test_an_erased_video_is_not_brought_back_by_who_still_works_on_it(redis: StoreClient) -> None:
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


async def test_erasing_a_video_takes_its_progress_and_the_names_of_its_features_along(redis: StoreClient) -> None:
    videos = VideoStore(redis, LogFollower(redis))
    await videos.create(TENANT, VIDEO)
    await videos.progress(TENANT, VIDEO.id, LogEvent(1, "decode", {}))
    await videos.remember_features(TENANT, VIDEO.id, "features:one")
    assert await videos.features_keys(TENANT, VIDEO.id) == ["features:one"]  # those are the cache's to erase
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


async def test_erasing_a_session_takes_its_answers_along_and_leaves_its_neighbours(redis: StoreClient) -> None:
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
    assert await sessions.conversation(TENANT, session.id) == (session, [])
    said = [
        MessageRecord(id=f"msg_{number}", role="user", content="…", created_at=0.0, answer_id="ans_1")
        for number in range(12)
    ]
    for number, message in enumerate(said):
        await redis.hset(keys.messages(TENANT, session.id), str(number), message.model_dump_json())
    assert await sessions.conversation(TENANT, session.id) == (session, said)
    assert await sessions.messages(TENANT, session.id) == said


async def test_no_tenant_sees_another_s(redis: StoreClient) -> None:
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
async def test_pages_give_every_item_once_newest_first(redis: StoreClient, limit: int) -> None:
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


async def test_of_records_that_are_gone_a_list_says_nothing(redis: StoreClient) -> None:
    videos = VideoStore(redis, LogFollower(redis))
    await videos.create(TENANT, VIDEO)
    assert await videos.get_many(TENANT, [video_id(TENANT, "gone"), VIDEO.id]) == [VIDEO]
    assert await videos.get_many(TENANT, []) == []


async def test_the_stored_bytes_are_those_of_the_records(redis: StoreClient) -> None:
    store = VideoStore(redis, LogFollower(redis))
    one, two = video_record(bytes=3_000_000_000), video_record(id="vid_" + "2" * 32, bytes=7)
    assert await store.stored_bytes(TENANT) == 0
    assert [await store.create(TENANT, record) for record in (one, one, two)] == [True, False, True]
    assert await store.stored_bytes(TENANT) == 3_000_000_007
    await store.update(TENANT, one.model_copy(update={"status": "ready"}))
    assert [await store.erase(TENANT, one.id) for _ in range(2)] == [True, False]
    assert await store.stored_bytes(TENANT) == 7
    assert await store.stored_bytes("another") == 0


async def test_of_uploads_at_once_only_as_many_are_let_in_as_fit(redis: StoreClient) -> None:
    store = VideoStore(redis, LogFollower(redis))
    await store.create(TENANT, video_record(bytes=40))
    tried = [store.reserve(TENANT, f"upload {number}", 20, limit=100, seconds=60) for number in range(10)]
    assert sum(await asyncio.gather(*tried)) == 3
    assert await store.reserve("another", "upload", 20, limit=100, seconds=60)


async def test_reserved_bytes_change_and_are_given_back_or_become_the_record_s(redis: StoreClient) -> None:
    store = VideoStore(redis, LogFollower(redis))

    async def reserve(name: str, num_bytes: int) -> bool:
        return await store.reserve(TENANT, name, num_bytes, limit=100, seconds=60)

    assert await reserve("a", 90)
    assert not await reserve("b", 20)
    assert await reserve("a", 80), "instead of the 90"
    assert await reserve("b", 20)
    assert not await reserve("a", 81)
    await store.release(TENANT, "b")
    assert await store.create(TENANT, video_record(bytes=70), reservation="a")
    assert await reserve("c", 30), "70 are stored, none is reserved besides"
    assert not await reserve("d", 1)


async def test_reserved_bytes_run_out_unless_they_are_prolonged(redis: StoreClient) -> None:
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
