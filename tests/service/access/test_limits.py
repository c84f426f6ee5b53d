"""Answers count against their key's limit while they run, with a record or without one."""

import asyncio
import time

import pytest

from service.access import limits
from service.access.callers import ANONYMOUS, Caller, Limits
from service.access.limits import ConcurrencyLimit
from service.access.scopes import Scope
from service.errors import LimitExceeded
from service.observability.metrics import Metrics
from service.store.api_keys import ApiKeyStore
from service.store.connection import StoreClient
from service.store.keys import answers_of_key

KEY_ID = "key_1"


def caller(concurrent_answers: int) -> Caller:
    return Caller(
        tenant="acme",
        key_id=KEY_ID,
        scopes=frozenset(Scope),
        limits=Limits(concurrent_answers=concurrent_answers),
    )


def concurrency_limit(redis: StoreClient) -> ConcurrencyLimit:
    return ConcurrencyLimit(ApiKeyStore(redis), metrics=Metrics())


async def test_an_answer_without_a_record_counts_for_as_long_as_it_runs(
    redis: StoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_RENEW_INTERVAL", 0.01)
    limit, one_at_a_time = concurrency_limit(redis), caller(1)
    async with limit.count_answers_until_exit(one_at_a_time, ["one"]):
        await redis.zadd(answers_of_key(KEY_ID), {"one": time.time() - 61})  # longer ago than a record may take
        await asyncio.sleep(0.1)
        with pytest.raises(LimitExceeded):
            async with limit.count_answers_until_exit(one_at_a_time, ["two"]):
                pass
    async with limit.count_answers_until_exit(one_at_a_time, ["two"]):
        pass
    with pytest.raises(RuntimeError):
        async with limit.count_answers_until_exit(one_at_a_time, ["three"]):
            raise RuntimeError
    assert await redis.zcard(answers_of_key(KEY_ID)) == 0


async def test_several_answers_are_accepted_together_or_not_at_all(redis: StoreClient) -> None:
    limit = concurrency_limit(redis)
    async with limit.count_answers_until_exit(caller(3), ["one", "two"]):
        with pytest.raises(LimitExceeded):
            async with limit.count_answers_until_exit(caller(3), ["three", "four"]):
                pass
        assert await redis.zcard(answers_of_key(KEY_ID)) == 2
        async with limit.count_answers_until_exit(caller(3), ["three"]):
            pass


async def test_an_answer_whose_record_is_erased_has_ended(redis: StoreClient) -> None:
    limit, one_at_a_time = concurrency_limit(redis), caller(1)
    async with limit.count_answer(one_at_a_time, "one"):
        with pytest.raises(LimitExceeded):  # its record may still be written
            async with limit.count_answer(one_at_a_time, "two"):
                pass
    async with asyncio.timeout(5):
        while await redis.zscore(answers_of_key(KEY_ID), "one") != 0:  # noqa: ASYNC110  marked in the background
            await asyncio.sleep(0.01)
    async with limit.count_answer(one_at_a_time, "two"):
        pass


async def test_a_refused_answer_does_not_count(redis: StoreClient) -> None:
    limit = concurrency_limit(redis)
    with pytest.raises(RuntimeError):
        async with limit.count_answer(caller(1), "one"):
            raise RuntimeError
    assert await redis.zcard(answers_of_key(KEY_ID)) == 0


async def test_a_caller_without_the_limit_needs_no_store(absent_redis: StoreClient) -> None:
    limit = concurrency_limit(absent_redis)
    async with limit.count_answer(ANONYMOUS, "one"), limit.count_answers_until_exit(ANONYMOUS, ["two"]):
        pass
