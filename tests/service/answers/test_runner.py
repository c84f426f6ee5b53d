"""Who reads an answer, at which replica, and who does not: an answer lives as long as somebody wants it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from model.text.conversation import Turn
from model.video.spec import VideoLimits
from service.answers.generation import LiveAnswer
from service.answers.runner import Answering
from service.answers.takeover import Takeover
from service.decoding.decoder import Decoder
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store import keys
from service.store.answers import AnswerStore, AnswerWrite, Hold
from service.store.connection import StoreClient
from service.store.event_log import LogEvent
from service.store.leases import Leases
from service.store.records import AnswerRecord, FrameRequest, SessionRecord
from service.store.sessions import SessionStore
from service.store.videos import VideoStore
from service.videos.preparation import Preparation
from service.videos.stores import open_video_stores
from service.workers.pool import Pool, _Job
from service.workers.process import WorkerProcess
from service.workers.protocol import Abort, Command, Delta, Generate, StepDone
from service.workers.roles import Place
from tests.service.answers.conversations import PARAMS, TENANT, accept, answer_record, live_answer
from tests.service.workers.test_pool import pool_of


@asynccontextmanager
async def replica(
    redis: StoreClient, pool: Pool, tmp_path: Path, *, grace: float, lease_seconds: float = 3
) -> AsyncIterator[Answering]:
    """The answering part of a replica whose workers are this test: it says what they say."""
    settings = Settings(data_dir=tmp_path, disconnect_grace=grace, lease_seconds=lease_seconds)
    metrics, videos = Metrics(), VideoStore(redis)
    stores = open_video_stores(settings, redis, metrics)
    encoding = Preparation(stores, pool=pool, decoder=Decoder(VideoLimits(), 10), metrics=metrics)
    answering = Answering(
        settings=settings,
        pool=pool,
        encoding=encoding,
        videos=videos,
        answers=AnswerStore(redis),
        takeover=Takeover(
            videos=videos,
            sessions=SessionStore(redis),
            answers=AnswerStore(redis),
            lease_seconds=lease_seconds,
            metrics=metrics,
        ),
        metrics=metrics,
    )
    answering.start()
    yield answering
    await answering.close()


async def begin(answering: Answering, redis: StoreClient) -> LiveAnswer:
    """An answer as `chat` hands it over."""
    live = live_answer()
    assert await accept(redis, live.record, opening=live.opening(), owner=live.owner, lease_seconds=3)
    answering.begin(live)
    return live


def say(pool: Pool, live: LiveAnswer, text: str, *, finish_reason: str | None = None) -> None:
    pool.outputs.put_nowait(
        Delta(
            job_id=live.owner,
            text=text,
            token_ids=(1,),
            finish_reason=finish_reason,
            num_prompt_tokens=5,
            num_cached_tokens=0,
            num_output_tokens=1,
        )
    )


async def read(answering: Answering, live: LiveAnswer, *, after: int = 0) -> list[str]:
    """The names of the events up to the end."""
    async with asyncio.timeout(20):
        return [e.name async for e in answering.follow(TENANT, live.id, after=after) if e is not None]


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    async with pool_of(0) as pool:
        yield pool


async def test_what_a_worker_says_is_read_to_the_end(redis: StoreClient, pool: Pool, tmp_path: Path) -> None:
    async with replica(redis, pool, tmp_path, grace=5) as answering:
        live = await begin(answering, redis)
        say(pool, live, "A red")
        say(pool, live, " square.", finish_reason="stop")
        assert await read(answering, live) == ["answer", "delta", "delta", "done"]
        assert (await answering.answer(TENANT, live.id)).status == "completed"


async def test_an_answer_that_nobody_reads_any_more_is_stopped(redis: StoreClient, pool: Pool, tmp_path: Path) -> None:
    async with replica(redis, pool, tmp_path, grace=0.2) as answering:
        live = await begin(answering, redis)
        async with aclosing(answering.follow(TENANT, live.id, after=0)) as events:
            await anext(events)
        await asyncio.sleep(0.6)
        assert (await answering.answer(TENANT, live.id)).status == "cancelled"


async def test_without_grace_a_reader_still_has_the_time_to_arrive(
    redis: StoreClient, pool: Pool, tmp_path: Path
) -> None:
    async with replica(redis, pool, tmp_path, grace=0) as answering:
        live = await begin(answering, redis)
        await asyncio.sleep(0.2)
        say(pool, live, "Here.", finish_reason="stop")
        assert await read(answering, live) == ["answer", "delta", "done"]


async def test_who_leaves_has_the_whole_grace_period_to_come_back(
    redis: StoreClient, pool: Pool, tmp_path: Path
) -> None:
    async with replica(redis, pool, tmp_path, grace=1) as answering:
        live = await begin(answering, redis)
        async with aclosing(answering.follow(TENANT, live.id, after=0)) as events:
            await anext(events)
            await asyncio.sleep(0.8)
        await asyncio.sleep(0.5)  # more than a period since the question, less than one since the leaving
        say(pool, live, "Back.", finish_reason="stop")
        assert await read(answering, live, after=1) == ["delta", "done"]


async def test_a_reader_at_another_replica_counts_while_events_flow_without_a_pause(
    redis: StoreClient, pool: Pool, tmp_path: Path
) -> None:
    async with (
        replica(redis, pool, tmp_path, grace=0.3) as owner,
        pool_of(0) as idle,
        replica(redis, idle, tmp_path, grace=0.3) as other,
    ):
        live = await begin(owner, redis)
        async with aclosing(owner.follow(TENANT, live.id, after=0)) as events:
            await anext(events)  # the connection breaks …
        reading = asyncio.create_task(read(other, live))  # … and comes back elsewhere
        for _ in range(10):
            say(pool, live, "and ")
            await asyncio.sleep(0.15)
        say(pool, live, "so on.", finish_reason="stop")
        assert await reading == ["answer", *["delta"] * 11, "done"]
        assert (await other.answer(TENANT, live.id)).status == "completed"


class Listener(WorkerProcess):
    """A worker that does nothing but hear."""

    def __init__(self) -> None:
        self.heard: list[Command] = []
        self.number = 0
        self.place = Place(role="all", device="cpu")

    @property
    def pid(self) -> int:
        return 0

    @property
    def seconds_silent(self) -> float:
        return 0.0

    def send(self, command: Command) -> None:
        self.heard.append(command)

    async def stop(self) -> None:
        pass

    def asked(self) -> Generate:
        [command] = [command for command in self.heard if isinstance(command, Generate)]
        return command


def employ(pool: Pool) -> Listener:
    """The pool's one worker from now on; which of several to choose is not tested here."""
    listener = Listener()
    pool._ready[listener] = StepDone(deltas=(), num_running=0, num_waiting=0, kv_cache_usage=0.0, num_preemptions=0)

    def dispatch(job: _Job) -> None:
        job.worker = listener
        listener.send(job.command)

    pool._dispatch = dispatch  # type: ignore[method-assign]
    return listener


def tell(pool: Pool, command: Generate, text: str, *token_ids: int, finish_reason: str | None = None) -> None:
    """What a worker says of the job it was given."""
    pool.outputs.put_nowait(
        Delta(
            job_id=command.job_id,
            text=text,
            token_ids=token_ids,
            finish_reason=finish_reason,
            num_prompt_tokens=5,
            num_cached_tokens=0,
            num_output_tokens=1,
        )
    )


async def orphan(redis: StoreClient) -> AnswerRecord:
    """An answer of which three tokens are in the log, and whose owner has just died."""
    record, answers = answer_record(), AnswerStore(redis)
    assert await accept(redis, record, owner="own_dead", lease_seconds=0.001)
    events = (LogEvent(2, "delta", {"text": "A r"}, (1, 2)), LogEvent(3, "delta", {"text": "ed"}, (3,)))
    write = AnswerWrite(
        tenant=TENANT, answer_id=record.id, session_id=record.session_id, owner="own_dead", events=events
    )
    assert await answers.write([write]) == [Hold.OURS]
    await asyncio.sleep(0.01)
    return record


async def heard_of(listener: Listener) -> Generate:
    async with asyncio.timeout(10):
        while not any(isinstance(command, Generate) for command in listener.heard):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return listener.asked()


async def test_whoever_is_asked_for_an_answer_whose_owner_died_goes_on_with_it(
    redis: StoreClient, pool: Pool, tmp_path: Path
) -> None:
    record, listener = await orphan(redis), employ(pool)
    async with replica(redis, pool, tmp_path, grace=5, lease_seconds=60) as answering:  # no sweep, no run-out lease
        async with asyncio.timeout(20):
            reading = asyncio.create_task(_read_all(answering, record.id))
            command = await heard_of(listener)
            assert (command.output_token_ids, command.params) == ((1, 2, 3), PARAMS)
            assert command.conversation.turns[-1].text == record.question
            tell(pool, command, " square.", 4, 5, finish_reason="stop")
            events = await reading
        assert [(e.number, e.name) for e in events] == list(
            enumerate(["answer", "delta", "delta", "delta", "done"], start=1)
        )
        ended = await answering.answer(TENANT, record.id)
        assert ended.message is not None
        assert ended.message.content == "A red square."
        [_, said] = await SessionStore(redis).messages(TENANT, record.session_id)
        assert said == ended.message


async def _read_all(answering: Answering, answer_id: str) -> list[LogEvent]:
    return [event async for event in answering.follow(TENANT, answer_id, after=0) if event is not None]


async def test_an_answer_whose_owner_died_is_found_though_nobody_asks_for_it(
    redis: StoreClient, pool: Pool, tmp_path: Path
) -> None:
    record, listener = await orphan(redis), employ(pool)
    async with replica(redis, pool, tmp_path, grace=5, lease_seconds=1) as answering:
        command = await heard_of(listener)
        tell(pool, command, ".", 4, finish_reason="stop")
        assert [event.name for event in await _read_all(answering, record.id)][-1] == "done"


async def test_a_replica_without_a_worker_leaves_orphans_to_those_that_have_one(
    redis: StoreClient, pool: Pool, tmp_path: Path
) -> None:
    record = await orphan(redis)
    async with replica(redis, pool, tmp_path, grace=5, lease_seconds=1) as answering:
        await asyncio.sleep(1)
        assert (await answering.answer(TENANT, record.id)).status == "in_progress"
        assert await AnswerStore(redis).orphans() == [(TENANT, record.id)]


async def test_an_owner_that_lost_its_answer_says_nothing_more_and_stops_its_worker(
    redis: StoreClient, pool: Pool, tmp_path: Path
) -> None:
    """It was paused for longer than its lease, and a successor came."""
    listener = employ(pool)
    async with pool_of(0) as other_pool:
        other_listener = employ(other_pool)
        async with replica(redis, pool, tmp_path, grace=9, lease_seconds=60) as answering:
            record = answer_record()
            live = about_nothing(record)
            assert await accept(redis, record, opening=live.opening(), owner=live.owner, lease_seconds=0.001)
            answering.begin(live)
            command = await heard_of(listener)
            tell(pool, command, "A", 1)
            await asyncio.sleep(0.1)
            async with replica(redis, other_pool, tmp_path, grace=9, lease_seconds=60) as successor:
                reading = asyncio.create_task(_read_all(successor, record.id))
                taken = await heard_of(other_listener)
                assert taken.output_token_ids == (1,)
                tell(pool, command, " ghost", 6)
                tell(other_pool, taken, " cat.", 2, finish_reason="stop")
                events = await asyncio.wait_for(reading, 20)
                assert [e.data.get("text") for e in events if e.name == "delta"] == ["A", " cat."]
            await asyncio.sleep(0.1)
            assert any(isinstance(heard, Abort) for heard in listener.heard)
            assert answering.num_running == 0


def about_nothing(record: AnswerRecord) -> LiveAnswer:
    """A live answer about no video, so that nothing has to be encoded."""
    session = SessionRecord(
        id=record.session_id, video_ids=(), model="tiny", system="", frames=FrameRequest(), created_at=1.0
    )
    turns = (Turn(role="user", text=record.question),)
    return LiveAnswer(
        tenant=TENANT, record=record, session=session, videos=(), turns=turns, params=PARAMS, num_messages=0
    )


async def test_a_replica_that_leaves_hands_its_answers_over_at_once(
    redis: StoreClient, pool: Pool, tmp_path: Path
) -> None:
    listener = employ(pool)
    async with pool_of(0) as other_pool:
        other_listener = employ(other_pool)
        record = answer_record()
        live = about_nothing(record)
        async with replica(redis, pool, tmp_path, grace=9, lease_seconds=60) as answering:
            assert await accept(redis, record, opening=live.opening(), owner=live.owner, lease_seconds=60)
            answering.begin(live)
            command = await heard_of(listener)
            tell(pool, command, "A", 1)
            reading = asyncio.create_task(_read_all(answering, record.id))
            await asyncio.sleep(0.1)
            await answering.leave(patience=0.1, hurry=asyncio.Event())
            tell(pool, command, " ghost", 2)
            async with replica(redis, other_pool, tmp_path, grace=9, lease_seconds=60) as successor:
                assert (await successor.answer(TENANT, record.id)).status == "in_progress"
                taken = await heard_of(other_listener)
                assert taken.output_token_ids == (1,)
                tell(other_pool, taken, " cat.", 2, finish_reason="stop")
                events = await asyncio.wait_for(reading, 20)  # at the one that leaves, to the end
    assert [e.data.get("text") for e in events if e.name == "delta"] == ["A", " cat."]


async def test_a_replica_that_leaves_waits_for_answers_that_end_in_time(
    redis: StoreClient, pool: Pool, tmp_path: Path
) -> None:
    async with replica(redis, pool, tmp_path, grace=5) as answering:
        live = await begin(answering, redis)
        leaving = asyncio.create_task(answering.leave(patience=20, hurry=asyncio.Event()))
        await asyncio.sleep(0.1)
        say(pool, live, "Here.", finish_reason="stop")
        await asyncio.wait_for(leaving, 5)
        assert (await answering.answer(TENANT, live.id)).status == "completed"


async def test_the_end_of_a_replica_leaves_its_answers_to_be_found(
    redis: StoreClient, pool: Pool, tmp_path: Path
) -> None:
    async with replica(redis, pool, tmp_path, grace=5) as answering:
        live = await begin(answering, redis)
        say(pool, live, "A red")
        await asyncio.sleep(0.1)
    [_, last] = await AnswerStore(redis).read(TENANT, live.id, after=0, block=0)
    assert (last.name, last.token_ids) == ("delta", (1,))
    assert await AnswerStore(redis).orphans() == [(TENANT, live.id)]
    assert await Leases(redis, seconds=3).holder(keys.session_lease(TENANT, live.session.id)) == live.id


async def test_a_cancel_anywhere_is_heard_with_the_next_token(redis: StoreClient, pool: Pool, tmp_path: Path) -> None:
    listener = employ(pool)
    record = answer_record()
    live = about_nothing(record)
    async with (
        replica(redis, pool, tmp_path, grace=9, lease_seconds=60) as answering,
        pool_of(0) as idle,
        replica(redis, idle, tmp_path, grace=9, lease_seconds=60) as other,
    ):
        assert await accept(redis, record, opening=live.opening(), owner=live.owner, lease_seconds=60)
        answering.begin(live)
        command = await heard_of(listener)
        await other.cancel(TENANT, record.id)
        tell(pool, command, "A", 1)
        async with asyncio.timeout(5):
            while not any(isinstance(heard, Abort) for heard in listener.heard):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
