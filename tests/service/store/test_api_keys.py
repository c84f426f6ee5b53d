"""How much a key has used is counted across replicas, and never stays counted when it is over."""

import asyncio
import time

from service.ids import new_id
from service.store import keys
from service.store.answers import AnswerStore, AnswerWrite, Ending, OwnerVerdict
from service.store.api_keys import ApiKeyStore
from service.store.connection import StoreClient
from service.store.event_log import LogEvent
from service.store.log_follower import LogFollower
from service.store.records import AnswerRecord
from service.store.sessions import SessionStore
from tests.service.answers.conversations import OWNER, TENANT, accept, answer_record

KEY = "key_1"


async def begun(redis: StoreClient) -> AnswerRecord:
    """An answer that is being given under the key."""
    record = answer_record()
    assert await ApiKeyStore(redis).take_answer(TENANT, KEY, record.id, limit=2)
    assert await accept(redis, record)
    return record


async def take(redis: StoreClient) -> bool:
    return await ApiKeyStore(redis).take_answer(TENANT, KEY, new_id("ans"), limit=2)


async def test_no_more_places_are_given_than_there_are_however_many_ask(redis: StoreClient) -> None:
    assert sum(await asyncio.gather(*(take(redis) for _ in range(20)))) == 2


async def test_an_answer_that_ended_leaves_its_place_though_nobody_says_so(redis: StoreClient) -> None:
    first, _ = await begun(redis), await begun(redis)
    assert not await take(redis)
    done = first.model_copy(update={"status": "completed"})
    write = AnswerWrite(
        tenant=TENANT,
        answer_id=first.id,
        session_id=first.session_id,
        owner=OWNER,
        events=(LogEvent(2, "done", {}),),
        ending=Ending(record=done, number=0, turn=()),
    )
    assert await AnswerStore(redis, LogFollower(redis)).write([write]) == [OwnerVerdict.OWNED]
    assert await take(redis)
    assert not await take(redis)


async def test_an_erased_answer_leaves_its_place_after_a_minute(redis: StoreClient) -> None:
    first, _ = await begun(redis), await begun(redis)
    session = await SessionStore(redis).get(TENANT, first.session_id)
    assert session is not None
    await SessionStore(redis).erase(TENANT, session)
    assert not await take(redis)  # it might be one that is only just being looked at
    await redis.zadd(keys.answers_of_key(KEY), {first.id: time.time() - 61})
    assert await take(redis)


async def test_a_refused_answer_gives_its_place_back(redis: StoreClient) -> None:
    await begun(redis)
    answer_id = new_id("ans")
    assert await ApiKeyStore(redis).take_answer(TENANT, KEY, answer_id, limit=2)
    assert await ApiKeyStore(redis).take_answer(TENANT, KEY, answer_id, limit=2)  # the same one again
    assert not await take(redis)
    await ApiKeyStore(redis).leave_answer(KEY, answer_id)
    assert await take(redis)
