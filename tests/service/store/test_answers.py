"""Writes to an answer are fenced and idempotent, and its end is one atomic step."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from service.errors import Unavailable
from service.store import keys
from service.store.answers import AnswerStore, AnswerWrite, CreateOutcome, Ending, OwnerVerdict
from service.store.connection import StoreClient
from service.store.event_log import LogEvent
from service.store.leases import Leases
from service.store.log_follower import LogFollower
from service.store.records import AnswerRecord, MessageRecord
from service.store.sessions import SessionStore
from tests.service.answers.conversations import OWNER, TENANT, accept, answer_record, session_record

ANSWER = answer_record()
LEASE = keys.session_lease(TENANT, ANSWER.session_id)


def delta(number: int) -> LogEvent:
    return LogEvent(number, "delta", {"text": f"word {number} "})


def message(role: str) -> MessageRecord:
    return MessageRecord.model_validate(
        {"id": f"msg_{role}", "role": role, "content": "…", "created_at": 0.0, "answer_id": ANSWER.id}
    )


def write(*events: LogEvent, ending: Ending | None = None) -> AnswerWrite:
    return AnswerWrite(
        tenant=TENANT, answer_id=ANSWER.id, session_id=ANSWER.session_id, owner=OWNER, events=events, ending=ending
    )


DONE = write(
    delta(2),
    LogEvent(3, "done", {}),
    ending=Ending(
        record=ANSWER.model_copy(update={"status": "completed"}), number=4, turn=(message("user"), message("assistant"))
    ),
)


@pytest.fixture
async def answers(redis: StoreClient) -> AsyncIterator[AnswerStore]:
    """A store with one answer in progress."""
    follower = LogFollower(redis)
    follower.start()
    assert await accept(redis, ANSWER)
    yield AnswerStore(redis, follower)
    await follower.close()


async def log(answers: AnswerStore) -> list[tuple[int, str]]:
    return [(e.number, e.name) for e in await answers.whole_log(TENANT, ANSWER.id)]


async def history(redis: StoreClient) -> list[str]:
    return [m.id for m in await SessionStore(redis).messages(TENANT, ANSWER.session_id)]


async def test_events_and_the_end_arrive_once_and_in_order(answers: AnswerStore, redis: StoreClient) -> None:
    assert await answers.write([DONE]) == [OwnerVerdict.OWNED]
    assert await log(answers) == [(1, "answer"), (2, "delta"), (3, "done")]
    assert await history(redis) == ["msg_user", "msg_assistant"]
    record = await answers.get(TENANT, ANSWER.id)
    assert record is not None
    assert record.status == "completed"


async def test_a_write_that_is_repeated_doubles_nothing(answers: AnswerStore, redis: StoreClient) -> None:
    for same in (write(delta(2)), write(delta(2)), DONE, DONE):
        assert await answers.write([same]) == [OwnerVerdict.OWNED]
    assert await log(answers) == [(1, "answer"), (2, "delta"), (3, "done")]
    assert await history(redis) == ["msg_user", "msg_assistant"]


async def test_the_session_is_free_as_soon_as_done_is_in_the_log(answers: AnswerStore, redis: StoreClient) -> None:
    """A client that has read `done` can ask the next question at once."""

    async def ask_after_done() -> bool:
        async with answers.follow(TENANT, ANSWER.id, after=2) as followed:
            [last] = await followed.next(timeout=4)
        assert last.name == "done"
        return await Leases(redis, seconds=10).acquire(LEASE, "ans_next")

    asking = asyncio.create_task(ask_after_done())
    await asyncio.sleep(0.1)
    await answers.write([DONE])
    assert await asking
    await answers.write([DONE])
    assert await Leases(redis, seconds=10).holder(LEASE) == "ans_next", (
        "a repeated end does not release another answer's lease"
    )


async def test_an_erased_answer_stays_erased(answers: AnswerStore, redis: StoreClient) -> None:
    session = await SessionStore(redis).get(TENANT, ANSWER.session_id)
    assert session is not None
    await SessionStore(redis).erase(TENANT, session)
    assert await answers.write([write(delta(2)), DONE]) == [OwnerVerdict.LOST, OwnerVerdict.LOST]
    assert await redis.keys() == []


async def test_nothing_is_appended_after_the_end(answers: AnswerStore, redis: StoreClient) -> None:
    """Readers have read the end, so a slow owner must not append to it."""
    failed = ANSWER.model_copy(update={"status": "failed"})
    lost = write(LogEvent(2, "error", {}), ending=Ending(record=failed, number=0, turn=()))
    assert await answers.write([lost]) == [OwnerVerdict.OWNED]
    assert await answers.write([write(delta(3)), replace(DONE, events=(delta(3), LogEvent(4, "done", {})))]) == [
        OwnerVerdict.LOST,
        OwnerVerdict.LOST,
    ]
    assert await log(answers) == [(1, "answer"), (2, "error")]
    assert await history(redis) == []
    assert await answers.get(TENANT, ANSWER.id) == failed


async def test_many_answers_are_written_together_and_each_gets_its_own_verdict(
    answers: AnswerStore, redis: StoreClient
) -> None:
    unknown = replace(write(delta(2)), answer_id="ans_nobody")
    assert await answers.write([unknown, write(delta(2))]) == [OwnerVerdict.LOST, OwnerVerdict.OWNED]
    assert await answers.write([]) == []


async def test_a_write_that_the_store_has_no_memory_for_fails_and_can_be_repeated(
    answers: AnswerStore, redis: StoreClient
) -> None:
    await redis.config_set("maxmemory-policy", "noeviction")
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable):
            await answers.write([write(delta(2))])
    finally:
        await redis.config_set("maxmemory", 0)
    assert await answers.write([write(delta(2))]) == [OwnerVerdict.OWNED]
    assert await log(answers) == [(1, "answer"), (2, "delta")]


async def test_flags_for_the_owner_arrive_with_its_next_write_or_renewal(answers: AnswerStore) -> None:
    assert await answers.followed_for(TENANT, ANSWER.id) == 0
    await answers.mark_followed(TENANT, ANSWER.id, seconds=2)
    assert 1 < await answers.followed_for(TENANT, ANSWER.id) <= 2
    assert await answers.renew(TENANT, ANSWER.id, OWNER, lease_seconds=9) is OwnerVerdict.OWNED
    await answers.request_cancel(TENANT, ANSWER.id)
    assert await answers.renew(TENANT, ANSWER.id, OWNER, lease_seconds=9) is OwnerVerdict.CANCEL_REQUESTED
    assert await answers.write([write(delta(2))]) == [OwnerVerdict.CANCEL_REQUESTED]
    assert await log(answers) == [(1, "answer"), (2, "delta")], "the event is kept"


async def test_an_answer_is_taken_from_a_dead_owner_only_and_by_one_replica_only(answers: AnswerStore) -> None:
    assert await answers.orphans() == []
    assert await answers.take(TENANT, ANSWER.id, "own_second", lease_seconds=9) is None
    await answers.renew(TENANT, ANSWER.id, OWNER, lease_seconds=0.001)
    await asyncio.sleep(0.01)
    assert await answers.orphans() == [(TENANT, ANSWER.id)]
    took = [await answers.take(TENANT, ANSWER.id, f"own_{n}", lease_seconds=9) for n in range(3)]
    assert took == [1, None, None]
    assert await answers.orphans() == []


async def test_an_owner_that_was_paused_cannot_write_after_its_successor(
    answers: AnswerStore, redis: StoreClient
) -> None:
    """Not even after the successor's lease has expired too."""
    await answers.renew(TENANT, ANSWER.id, OWNER, lease_seconds=0.001)
    await asyncio.sleep(0.01)
    assert await answers.write([write(delta(2))]) == [OwnerVerdict.OWNED], "no replica has taken the answer"
    assert await answers.take(TENANT, ANSWER.id, "own_second", lease_seconds=0.001) is not None
    await asyncio.sleep(0.01)
    assert await answers.write([write(delta(3)), replace(DONE, events=(delta(3), LogEvent(4, "done", {})))]) == [
        OwnerVerdict.LOST,
        OwnerVerdict.LOST,
    ]
    assert await answers.renew(TENANT, ANSWER.id, OWNER, lease_seconds=9) is OwnerVerdict.LOST
    assert await log(answers) == [(1, "answer"), (2, "delta")]
    assert await answers.write([replace(write(delta(3)), owner="own_second")]) == [OwnerVerdict.OWNED]
    assert await history(redis) == []


async def test_deaths_of_owners_are_counted_until_a_token_is_added(answers: AnswerStore) -> None:
    async def take(owner: str) -> int | None:
        await asyncio.sleep(0.01)
        return await answers.take(TENANT, ANSWER.id, owner, lease_seconds=0.001)

    await answers.renew(TENANT, ANSWER.id, OWNER, lease_seconds=0.001)
    assert [await take("own_1"), await take("own_2")] == [1, 2]
    await answers.release(TENANT, ANSWER.id, "own_2")
    assert await take("own_3") == 0, "a release does not count as a death"
    assert await answers.write([replace(write(LogEvent(2, "delta", {"text": "A"}, (7,))), owner="own_3")]) == [
        OwnerVerdict.OWNED
    ]
    assert await take("own_4") == 1
    [_, said] = await answers.whole_log(TENANT, ANSWER.id)
    assert said.token_ids == (7,)


async def test_a_log_whose_end_the_store_has_lost_accepts_no_more_events(
    answers: AnswerStore, redis: StoreClient
) -> None:
    await answers.write([write(delta(2), delta(3))])
    await redis.xdel(keys.answer_events(TENANT, ANSWER.id), "3-0")  # like a crash of a Redis that syncs now and then
    assert await answers.write([write(delta(4))]) == [OwnerVerdict.LOG_TRUNCATED]
    assert await log(answers) == [(1, "answer"), (2, "delta")]


async def test_an_ended_answer_keeps_only_its_record_and_log(answers: AnswerStore, redis: StoreClient) -> None:
    await answers.request_cancel(TENANT, ANSWER.id)
    await answers.write([DONE])
    assert await answers.take(TENANT, ANSWER.id, "own_second", lease_seconds=9) is None
    kept = {key for key in await redis.keys() if ANSWER.id.encode() in key}
    assert kept == {keys.answer(TENANT, ANSWER.id).encode(), keys.answer_events(TENANT, ANSWER.id).encode()}
    assert not await redis.exists(keys.running_answers())


async def test_an_answer_is_created_only_in_a_session_that_exists_is_free_and_has_not_changed(
    redis: StoreClient,
) -> None:
    answers = AnswerStore(redis, LogFollower(redis))
    first = answer_record()
    second = answer_record(first.session_id)
    lease = keys.session_lease(TENANT, first.session_id)

    async def create(record: AnswerRecord, *, num_messages: int = 0) -> CreateOutcome:
        return await answers.create(
            TENANT,
            record,
            opening=LogEvent(1, "answer", {}),
            num_messages=num_messages,
            owner=OWNER,
            lease_seconds=10,
        )

    assert await create(first) is CreateOutcome.GONE
    assert await redis.keys() == []
    assert await accept(redis, first)
    assert await redis.get(lease) == first.id.encode()
    assert await redis.ttl(lease) == -1, "the lease ends with the answer"
    kept = {key: await redis.dump(key) for key in await redis.keys()}
    assert await create(first) is CreateOutcome.DUPLICATE
    assert await create(second) is CreateOutcome.BUSY
    assert {key: await redis.dump(key) for key in await redis.keys()} == kept, "a refusal changes nothing"
    await redis.delete(lease)
    assert await create(second, num_messages=2) is CreateOutcome.CHANGED
    assert await create(first) is CreateOutcome.DUPLICATE, "also after its end"
    assert await create(second) is CreateOutcome.CREATED
    assert await redis.get(lease) == second.id.encode()


async def test_of_questions_at_once_one_is_accepted(redis: StoreClient) -> None:
    answers = AnswerStore(redis, LogFollower(redis))
    session = session_record()
    await SessionStore(redis).create(TENANT, session)
    records = [answer_record(session.id) for _ in range(10)]
    outcomes = await asyncio.gather(
        *(
            answers.create(
                TENANT,
                record,
                opening=LogEvent(1, "answer", {}),
                num_messages=0,
                owner=f"own_{record.id}",
                lease_seconds=9,
            )
            for record in records
        )
    )
    assert sorted(outcomes) == ["busy"] * 9 + ["created"]
