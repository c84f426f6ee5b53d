"""A key opens what it is for, for its tenant and within its limits; anything else opens nothing."""

import asyncio
import time

import pytest

from service.access import callers as access_module
from service.access.callers import ANYBODY, Access, Caller, needed, new_key
from service.access.scopes import Scope
from service.errors import Forbidden, LimitExceeded, ServiceError, Unauthenticated, Unavailable
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.api_keys import ApiKeyStore
from service.store.connection import StoreClient
from service.store.keys import answers_of_key

HIDDEN = Settings(host="0.0.0.0")  # noqa: S104  nothing is listened to here


def access(redis: StoreClient, settings: Settings | None = None) -> Access:
    return Access(ApiKeyStore(redis), settings=settings or Settings(), metrics=Metrics())


async def make(redis: StoreClient, **fields: object) -> str:
    token, record = new_key(name="test", **fields)  # type: ignore[arg-type]
    await ApiKeyStore(redis).add(record)
    return token


async def refused(redis: StoreClient, header: str | None) -> str:
    with pytest.raises(Unauthenticated) as error:
        await access(redis).caller(header)
    assert error.value.headers()["WWW-Authenticate"].startswith("Bearer")
    return error.value.code


async def test_a_key_says_who_asks(redis: StoreClient) -> None:
    token = await make(redis, tenant="acme", scopes=(Scope.USE, Scope.METRICS), concurrent_answers=3)
    caller = await access(redis).caller(f"Bearer {token}")
    assert await access(redis).caller(f"bearer  {token}") == caller  # a scheme's name has no case
    assert caller.tenant == "acme"
    assert caller.scopes == {Scope.USE, Scope.METRICS}
    assert (caller.limits.concurrent_answers, caller.limits.requests_per_minute) == (3, 600)


async def test_without_any_key_a_service_on_loopback_asks_nobody(redis: StoreClient) -> None:
    assert await access(redis).caller(None) == ANYBODY
    assert await access(redis).caller("Bearer what-a-client-sends-because-it-must") == ANYBODY


async def test_a_service_that_others_can_reach_is_closed_even_without_keys(redis: StoreClient) -> None:
    with pytest.raises(Unauthenticated):
        await access(redis, HIDDEN).caller(None)
    overridden = HIDDEN.model_copy(update={"allow_unauthenticated": True})
    assert await access(redis, overridden).caller(None) == ANYBODY


async def test_the_first_key_closes_the_door_and_its_end_does_not_open_it(redis: StoreClient) -> None:
    token, record = new_key(name="first")
    await ApiKeyStore(redis).add(record)
    assert await refused(redis, None) == "missing_key"
    assert await ApiKeyStore(redis).revoke(record.id)
    assert await refused(redis, f"Bearer {token}") == "invalid_key"
    assert await refused(redis, None) == "missing_key"
    await ApiKeyStore(redis).clear()
    assert await access(redis).caller(None) == ANYBODY


async def test_an_expired_key_opens_nothing(redis: StoreClient) -> None:
    token = await make(redis, expires_at=time.time() - 1)
    assert await refused(redis, f"Bearer {token}") == "invalid_key"


async def test_what_is_nearly_a_key_opens_nothing(redis: StoreClient) -> None:
    token, other = await make(redis), await make(redis)
    number, secret = token[4:36], token[37:]
    for header in (
        f"Bearer rtk_{number}_{other[37:]}",  # another key's secret
        f"Bearer rtk_{number}_{'0' * 64}",
        f"Bearer rtk_{'0' * 32}_{secret}",
        f"Bearer rtk_{number}_",
        f"Bearer {secret}",
        f"Bearer {token}x",
        f"Basic {token}",
        token,
        "Bearer",
        "",
    ):
        assert await refused(redis, header) == ("invalid_key" if header else "missing_key"), header


async def test_of_a_secret_only_its_hash_is_kept(redis: StoreClient) -> None:
    token = await make(redis)
    assert await redis.keys("*") == [b"api_keys"]
    assert token[37:] not in str(await redis.hgetall("api_keys"))


async def test_without_the_store_nobody_is_let_in(absent_redis: StoreClient) -> None:
    for header in (None, f"Bearer rtk_{'0' * 32}_{'0' * 64}"):
        with pytest.raises(Unavailable):
            await access(absent_redis).caller(header)


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/healthz", None),
        ("/readyz", None),
        ("/", None),
        ("/static/app.js", None),
        ("/static", Scope.USE),
        ("/healthz/", Scope.USE),
        ("/metrics", Scope.METRICS),
        ("/admin", Scope.ADMIN),
        ("/admin/drain", Scope.ADMIN),
        ("/administration", Scope.USE),
        ("/v1/videos", Scope.USE),
        ("/docs", Scope.USE),
        ("/not-yet-invented", Scope.USE),
    ],
)
def test_every_path_but_the_named_ones_needs_a_key(path: str, scope: Scope | None) -> None:
    assert needed(path) is scope


@pytest.mark.parametrize("scope", Scope)
async def test_a_key_is_for_what_it_was_made_for(redis: StoreClient, scope: Scope) -> None:
    caller = await access(redis).caller(f"Bearer {await make(redis, scopes=(scope,))}")
    await access(redis).allow(caller, scope)
    for other in set(Scope) - {scope}:
        with pytest.raises(Forbidden):
            await access(redis).allow(caller, other)


async def allowed(redis: StoreClient, caller: Caller, times: int) -> list[int]:
    """For each request, the seconds it is told to wait."""
    waits = []
    for _ in range(times):
        try:
            await access(redis).allow(caller, Scope.USE)
            waits.append(0)
        except ServiceError as error:
            assert isinstance(error, LimitExceeded)
            waits.append(int(error.headers()["Retry-After"]))
    return waits


async def test_a_minutes_requests_may_come_at_once_and_then_no_faster_than_the_rate(redis: StoreClient) -> None:
    caller = await access(redis).caller(f"Bearer {await make(redis, requests_per_minute=6)}")
    assert await allowed(redis, caller, 8) == [0] * 6 + [10, 10]
    other = await access(redis).caller(f"Bearer {await make(redis, requests_per_minute=6)}")
    assert await allowed(redis, other, 1) == [0]


async def test_whoever_waits_as_told_is_let_in(redis: StoreClient) -> None:
    caller = await access(redis).caller(f"Bearer {await make(redis, requests_per_minute=60)}")
    waits = [0]
    while waits[-1] == 0:  # a slow machine gains a request each second
        waits += await allowed(redis, caller, 1)
    assert len(waits) > 60 and waits[-1] == 1
    time.sleep(1.01)  # noqa: ASYNC251  nothing else runs here
    assert await allowed(redis, caller, 1) == [0]


async def test_an_answer_without_a_record_keeps_its_place_for_as_long_as_it_runs(
    redis: StoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_module, "_STAY", 0.01)
    door = access(redis)
    caller = await door.caller(f"Bearer {await make(redis, concurrent_answers=1)}")
    places = answers_of_key(str(caller.key_id))
    async with door.answer_place_to_the_end(caller, "one"):
        await redis.zadd(places, {"one": time.time() - 61})  # longer ago than a record may take to come
        await asyncio.sleep(0.1)
        with pytest.raises(LimitExceeded):
            async with door.answer_place_to_the_end(caller, "two"):
                pass
    async with door.answer_place_to_the_end(caller, "two"):
        pass
    with pytest.raises(RuntimeError):
        async with door.answer_place_to_the_end(caller, "three"):
            raise RuntimeError
    assert await redis.zcard(places) == 0


async def test_an_answer_whose_record_is_erased_has_ended(redis: StoreClient) -> None:
    door = access(redis)
    caller = await door.caller(f"Bearer {await make(redis, concurrent_answers=1)}")
    async with door.answer_place(caller, "one"):
        pass
    with pytest.raises(LimitExceeded):  # its record may still come
        async with door.answer_place(caller, "two"):
            pass
    await door.note_record(caller, "one")
    async with door.answer_place(caller, "two"):
        pass
