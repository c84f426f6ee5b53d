"""An idempotency key belongs to one request of one tenant; repetitions get the same result id."""

import asyncio

import pytest

from service.errors import InvalidRequest
from service.store.connection import StoreClient
from service.store.idempotency import IdempotencyStore, Repeatable

ASKED = Repeatable.of("order-7", method="POST", path="/v1/sessions", body_sha256="ab" * 32)


async def test_concurrent_repetitions_get_one_id(redis: StoreClient) -> None:
    store = IdempotencyStore(redis, ttl=100)
    ids = await asyncio.gather(*(store.claim("acme", ASKED, result_id=f"ses_{number}") for number in range(20)))
    assert len(set(ids)) == 1


@pytest.mark.parametrize(
    "other",
    [
        Repeatable.of("order-7", method="PUT", path="/v1/sessions", body_sha256="ab" * 32),
        Repeatable.of("order-7", method="POST", path="/v1/sessions/x/messages", body_sha256="ab" * 32),
        Repeatable.of("order-7", method="POST", path="/v1/sessions", body_sha256="cd" * 32),
    ],
)
async def test_another_request_with_the_same_key_is_refused(redis: StoreClient, other: Repeatable) -> None:
    store = IdempotencyStore(redis, ttl=100)
    await store.claim("acme", ASKED, result_id="ses_1")
    with pytest.raises(InvalidRequest) as refused:
        await store.claim("acme", other, result_id="ses_2")
    assert refused.value.code == "idempotency_key_reused"
    assert await store.claim("acme", ASKED, result_id="ses_3") == "ses_1"


async def test_tenants_do_not_share_keys(redis: StoreClient) -> None:
    store = IdempotencyStore(redis, ttl=100)
    assert await store.claim("acme", ASKED, result_id="ses_1") == "ses_1"
    assert await store.claim("rival", ASKED, result_id="ses_2") == "ses_2"


async def test_a_key_expires(redis: StoreClient) -> None:
    await IdempotencyStore(redis, ttl=1).claim("acme", ASKED, result_id="ses_1")
    await asyncio.sleep(1.1)
    assert await IdempotencyStore(redis, ttl=1).claim("acme", ASKED, result_id="ses_2") == "ses_2"
    [name] = await redis.keys("idempotency:*")
    assert b"order-7" not in name
