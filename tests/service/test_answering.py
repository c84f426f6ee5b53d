"""Who reads an answer, at which replica, and who does not: an answer lives as long as somebody wants it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from service.answer import LiveAnswer
from service.answering import Answering
from service.decoding import Decoder
from service.encoding import Encoding
from service.metrics import Metrics
from service.settings import Settings
from service.store import keys
from service.store.answers import AnswerStore
from service.store.connection import StoreClient
from service.store.features import FeatureCache
from service.store.leases import Leases
from service.store.media import MediaStore
from service.store.videos import VideoStore
from service.workers.pool import Pool
from service.workers.protocol import Delta
from tests.service.conversations import TENANT, accept, live_answer
from tests.service.workers.test_pool import pool_of


@asynccontextmanager
async def replica(redis: StoreClient, pool: Pool, tmp_path: Path, *, grace: float) -> AsyncIterator[Answering]:
    """The answering part of a replica whose workers are this test: it says what they say."""
    settings = Settings(disconnect_grace=grace, lease_seconds=3)
    metrics, videos, leases = Metrics(), VideoStore(redis), Leases(redis, seconds=3)
    encoding = Encoding(
        pool=pool,
        decoder=Decoder(settings.video_limits, 10),
        videos=videos,
        features=FeatureCache(redis, ttl=100, metrics=metrics),
        media=MediaStore(tmp_path),
        leases=leases,
        metrics=metrics,
    )
    answering = Answering(
        settings=settings,
        pool=pool,
        encoding=encoding,
        videos=videos,
        answers=AnswerStore(redis),
        leases=leases,
        metrics=metrics,
    )
    answering.start()
    yield answering
    await answering.close()


async def begin(answering: Answering, redis: StoreClient) -> LiveAnswer:
    """An answer as `chat` hands it over."""
    live = live_answer()
    assert await accept(redis, live.record, opening=live.opening(), lease_seconds=3)
    answering.begin(live)
    return live


def say(pool: Pool, live: LiveAnswer, text: str, *, finish_reason: str | None = None) -> None:
    pool.outputs.put_nowait(
        Delta(
            job_id=live.id,
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


async def test_an_answer_whose_owner_died_ends_for_everyone_who_asks(
    redis: StoreClient, pool: Pool, tmp_path: Path
) -> None:
    live = live_answer()
    assert await accept(redis, live.record, opening=live.opening(), lease_seconds=0.001)
    await asyncio.sleep(0.01)
    async with replica(redis, pool, tmp_path, grace=5) as answering:
        assert await read(answering, live, after=0) == ["answer", "error"]
        assert await read(answering, live, after=1) == ["error"]
        record = await answering.answer(TENANT, live.id)
        assert (record.status, record.error and record.error.code) == ("failed", "answer_lost")


async def test_the_end_of_the_replica_is_the_end_of_its_answers(redis: StoreClient, pool: Pool, tmp_path: Path) -> None:
    async with replica(redis, pool, tmp_path, grace=5) as answering:
        live = await begin(answering, redis)
    [_, last] = await AnswerStore(redis).read(TENANT, live.id, after=0, block=0)
    assert last.name == "error"
    assert await Leases(redis, seconds=3).holder(keys.session_lease(TENANT, live.session.id)) is None
