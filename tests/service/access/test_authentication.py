"""A key gives access to its scopes, for its tenant and at its rate; anything else gives access to nothing."""

import time

import pytest

from service.access.authentication import Authentication, required_scope
from service.access.callers import ANONYMOUS, Caller
from service.access.key_format import new_key
from service.access.scopes import Scope
from service.errors import Forbidden, LimitExceeded, Unauthenticated, Unavailable
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.api_keys import ApiKeyStore
from service.store.connection import StoreClient
from service.store.keys import request_rate

ON_THE_NETWORK = Settings(host="0.0.0.0")  # noqa: S104  no socket is opened here


async def caller_of(
    redis: StoreClient, header: str | None, *, scope: Scope = Scope.USE, settings: Settings | None = None
) -> Caller:
    authentication = Authentication(ApiKeyStore(redis), settings=settings or Settings(), metrics=Metrics())
    return await authentication.authenticate(header, scope)


async def make(redis: StoreClient, **fields: object) -> str:
    token, record = new_key(name="test", **fields)  # type: ignore[arg-type]
    await ApiKeyStore(redis).add(record)
    return token


async def refused(redis: StoreClient, header: str | None) -> str:
    with pytest.raises(Unauthenticated) as error:
        await caller_of(redis, header)
    assert error.value.headers()["WWW-Authenticate"].startswith("Bearer")
    return error.value.code


async def test_a_key_identifies_its_tenant_scopes_and_limits(redis: StoreClient) -> None:
    token = await make(redis, tenant="acme", scopes=(Scope.USE, Scope.METRICS), concurrent_answers=3)
    caller = await caller_of(redis, f"Bearer {token}")
    assert await caller_of(redis, f"bearer  {token}") == caller  # a scheme's name has no case
    assert caller.tenant == "acme"
    assert caller.scopes == {Scope.USE, Scope.METRICS}
    assert (caller.limits.concurrent_answers, caller.limits.requests_per_minute) == (3, 600)


async def test_a_service_on_loopback_without_keys_accepts_every_request(redis: StoreClient) -> None:
    assert await caller_of(redis, None) == ANONYMOUS
    assert await caller_of(redis, "Bearer what-a-client-sends-because-it-must") == ANONYMOUS


async def test_a_service_on_the_network_requires_a_key_even_if_there_is_none(redis: StoreClient) -> None:
    with pytest.raises(Unauthenticated):
        await caller_of(redis, None, settings=ON_THE_NETWORK)
    overridden = ON_THE_NETWORK.model_copy(update={"allow_unauthenticated": True})
    assert await caller_of(redis, None, settings=overridden) == ANONYMOUS


async def test_a_service_requires_a_key_from_the_first_one_on_even_after_its_revocation(redis: StoreClient) -> None:
    token, record = new_key(name="first")
    await ApiKeyStore(redis).add(record)
    assert await refused(redis, None) == "missing_key"
    assert await ApiKeyStore(redis).revoke(record.id)
    assert await refused(redis, f"Bearer {token}") == "invalid_key"
    assert await refused(redis, None) == "missing_key"
    await ApiKeyStore(redis).clear()
    assert await caller_of(redis, None) == ANONYMOUS


async def test_an_expired_key_is_refused(redis: StoreClient) -> None:
    token = await make(redis, expires_at=time.time() - 1)
    assert await refused(redis, f"Bearer {token}") == "invalid_key"


async def test_what_is_almost_a_key_is_refused(redis: StoreClient) -> None:
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


async def test_only_the_hash_of_a_secret_is_stored(redis: StoreClient) -> None:
    token = await make(redis)
    assert await redis.keys("*") == [b"api_keys"]
    assert token[37:] not in str(await redis.hgetall("api_keys"))


async def test_without_the_store_every_request_is_refused(absent_redis: StoreClient) -> None:
    for header in (None, f"Bearer rtk_{'0' * 32}_{'0' * 64}"):
        with pytest.raises(Unavailable):
            await caller_of(absent_redis, header)


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
def test_every_path_except_the_public_ones_requires_a_key(path: str, scope: Scope | None) -> None:
    assert required_scope(path) is scope


@pytest.mark.parametrize("scope", Scope)
async def test_a_key_gives_access_to_its_scopes_only(redis: StoreClient, scope: Scope) -> None:
    token = await make(redis, scopes=(scope,))
    await caller_of(redis, f"Bearer {token}", scope=scope)
    for other in set(Scope) - {scope}:
        with pytest.raises(Forbidden):
            await caller_of(redis, f"Bearer {token}", scope=other)


async def waits(redis: StoreClient, token: str, times: int) -> list[int]:
    """The seconds to wait that each of so many requests is refused with; 0 for one that is accepted."""
    found = []
    for _ in range(times):
        try:
            await caller_of(redis, f"Bearer {token}")
            found.append(0)
        except LimitExceeded as error:
            found.append(int(error.headers()["Retry-After"]))
    return found


async def test_a_minutes_requests_may_come_at_once_and_then_no_faster_than_the_rate(redis: StoreClient) -> None:
    token, other = await make(redis, requests_per_minute=6), await make(redis, requests_per_minute=6)
    assert await waits(redis, token, 8) == [0] * 6 + [10, 10]
    assert await waits(redis, other, 1) == [0]


async def test_a_key_without_a_rate_of_its_own_has_the_server_s(redis: StoreClient) -> None:
    header = f"Bearer {await make(redis)}"
    settings = Settings(key_requests_per_minute=2)
    for _ in range(2):
        await caller_of(redis, header, settings=settings)
    with pytest.raises(LimitExceeded, match="2 requests a minute"):
        await caller_of(redis, header, settings=settings)


async def test_a_client_that_waits_for_retry_after_is_accepted(redis: StoreClient) -> None:
    token = await make(redis, requests_per_minute=60)
    found = [0]
    while found[-1] == 0:  # a slow machine gains a request each second
        found += await waits(redis, token, 1)
    assert len(found) > 60 and found[-1] == 1
    time.sleep(1.01)  # noqa: ASYNC251  nothing else runs here
    assert await waits(redis, token, 1) == [0]


async def test_only_requests_with_the_secret_and_the_scope_use_count_against_the_rate(redis: StoreClient) -> None:
    token = await make(redis, scopes=(Scope.METRICS,), requests_per_minute=6)
    key_id = f"key_{token[4:36]}"
    assert await refused(redis, f"Bearer rtk_{token[4:36]}_{'0' * 64}") == "invalid_key"
    with pytest.raises(Forbidden):
        await caller_of(redis, f"Bearer {token}")
    await caller_of(redis, f"Bearer {token}", scope=Scope.METRICS)
    assert not await redis.exists(request_rate(key_id))


async def test_a_request_with_a_key_takes_one_round_trip(redis: StoreClient) -> None:
    token = await make(redis, requests_per_minute=6)
    await redis.config_resetstat()
    await caller_of(redis, f"Bearer {token}")
    [stats] = [row for name, row in (await redis.info("commandstats")).items() if name == "cmdstat_eval"]
    assert stats["calls"] == 1
