"""Who may do what: an API key says for which tenant somebody speaks, what they may do, and how much of it."""

import asyncio
import contextlib
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from service.access.scopes import LOCAL, MAX_PRIORITY, Scope
from service.errors import Forbidden, LimitExceeded, Unauthenticated, Unavailable
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.api_keys import ApiKeyRecord, ApiKeyStore

_BEARER = re.compile(r"(?i:bearer) +rtk_([0-9a-f]{32})_([0-9a-f]{64})")
_PUBLIC = {"/", "/healthz", "/readyz"}
_STAY = 15.0  # seconds between two signs of life of an answer without a record; the store waits for a minute


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much a caller may use; None is without bound."""

    requests_per_minute: int | None = None
    concurrent_answers: int | None = None
    stored_bytes: int | None = None
    max_priority: int = MAX_PRIORITY


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks; `key_id` is None where nobody has to say."""

    tenant: str
    key_id: str | None
    scopes: frozenset[Scope]
    limits: Limits


ANYBODY = Caller(tenant=LOCAL, key_id=None, scopes=frozenset(Scope), limits=Limits())


def needed(path: str) -> Scope | None:
    """What a path asks of whoever comes; None where anybody may. A path that is not named here needs a key."""
    if path in _PUBLIC or path.startswith("/static/"):
        return None
    if path == "/admin" or path.startswith("/admin/"):
        return Scope.ADMIN
    return Scope.METRICS if path == "/metrics" else Scope.USE


def new_key(
    *,
    name: str,
    tenant: str = LOCAL,
    scopes: tuple[Scope, ...] = (Scope.USE,),
    expires_at: float | None = None,
    requests_per_minute: int | None = None,
    concurrent_answers: int | None = None,
    stored_bytes: int | None = None,
    max_priority: int | None = None,
) -> tuple[str, ApiKeyRecord]:
    """A key that nobody can guess (256 random bits), and what is kept of it.

    Returns:
        The key as its owner sends it, which cannot be had again, and its record.
    """
    secret, number = secrets.token_hex(32), secrets.token_hex(16)
    record = ApiKeyRecord(
        id=f"key_{number}",
        secret_sha256=_hash(secret),
        name=name,
        tenant=tenant,
        scopes=scopes,
        created_at=time.time(),
        expires_at=expires_at,
        requests_per_minute=requests_per_minute,
        concurrent_answers=concurrent_answers,
        stored_bytes=stored_bytes,
        max_priority=max_priority,
    )
    return f"rtk_{number}_{secret}", record


class Access:
    """Knows callers by their keys."""

    def __init__(self, keys: ApiKeyStore, *, settings: Settings, metrics: Metrics) -> None:
        self._keys = keys
        self._settings = settings
        self._metrics = metrics

    async def is_open(self) -> bool:
        """Whether nobody has to show a key: there has never been one, and the settings allow to do without."""
        return self._settings.may_be_open and not await self._keys.any()

    async def caller(self, authorization: str | None) -> Caller:
        """Who sends this `Authorization` header.

        Raises:
            Unauthenticated: no key, or none that is valid.
        """
        found = _BEARER.fullmatch(authorization or "")
        if found is None:
            if await self.is_open():
                return ANYBODY
            raise _unknown(authorization)
        record = await self._keys.get(f"key_{found[1]}")
        # A secret is hashed and compared whether or not there is a record: how long it takes tells nothing.
        if not hmac.compare_digest(_hash(found[2]), record.secret_sha256 if record else _hash("")) or record is None:
            if record is None and await self.is_open():
                return ANYBODY
            raise _unknown(authorization)
        if not record.is_valid():
            raise Unauthenticated("invalid_key", "This key has expired or was revoked.")
        return Caller(
            tenant=record.tenant,
            key_id=record.id,
            scopes=frozenset(record.scopes),
            limits=self._limits(record),
        )

    async def allow(self, caller: Caller, scope: Scope) -> None:
        """Let a caller in, and count the request.

        Raises:
            Forbidden: the key is not for this.
            LimitExceeded: it has made too many requests.
        """
        if scope not in caller.scopes:
            raise Forbidden("missing_scope", f"This key does not have the scope `{scope}`.")
        per_minute = caller.limits.requests_per_minute
        if scope is not Scope.USE or caller.key_id is None or per_minute is None:
            return
        if wait := await self._keys.take_request(caller.key_id, per_minute=per_minute):
            self._metrics.admission_rejections.labels("requests_per_minute").inc()
            raise LimitExceeded(
                "too_many_requests", f"This key may make {per_minute} requests a minute.", retry_after=wait
            )

    @contextlib.asynccontextmanager
    async def answer_place(self, caller: Caller, answer_id: str) -> AsyncIterator[None]:
        """Count an answer among its key's; one that is refused in the block, or fails there, is not counted.

        Raises:
            LimitExceeded: the key has as many answers running or waiting as it may.
        """
        limit = caller.limits.concurrent_answers
        if caller.key_id is None or limit is None:
            yield
            return
        if not await self._keys.take_answer(caller.tenant, caller.key_id, answer_id, limit=limit):
            self._metrics.admission_rejections.labels("concurrent_answers").inc()
            raise LimitExceeded("too_many_answers", f"This key may have {limit} answers running or waiting.")
        try:
            yield
        except BaseException:
            await asyncio.shield(self._keys.leave_answer(caller.key_id, answer_id))
            raise

    async def note_record(self, caller: Caller, answer_id: str) -> None:
        """Say that an answer that was given a place has a record, which tells when it has ended."""
        if caller.key_id is not None and caller.limits.concurrent_answers is not None:
            with contextlib.suppress(Unavailable):  # then it counts for a minute, should it be erased
                await self._keys.note_record(caller.key_id, answer_id)

    @contextlib.asynccontextmanager
    async def answer_place_to_the_end(self, caller: Caller, answer_id: str) -> AsyncIterator[None]:
        """Count an answer that has no record among its key's, until the block ends.

        Raises:
            LimitExceeded: the key has as many answers running or waiting as it may.
        """
        key_id = caller.key_id
        if key_id is None:
            yield
            return
        async with self.answer_place(caller, answer_id):
            staying = asyncio.create_task(self._stay(key_id, answer_id))
            try:
                yield
            finally:
                staying.cancel()
        await asyncio.shield(self._keys.leave_answer(key_id, answer_id))

    async def _stay(self, key_id: str, answer_id: str) -> None:
        while True:
            await asyncio.sleep(_STAY)
            with contextlib.suppress(Unavailable):  # the next one may be in time
                await self._keys.keep_answer(key_id, answer_id)

    def _limits(self, record: ApiKeyRecord) -> Limits:
        settings = self._settings
        return Limits(
            requests_per_minute=record.requests_per_minute or settings.key_requests_per_minute,
            concurrent_answers=record.concurrent_answers or settings.key_concurrent_answers,
            stored_bytes=record.stored_bytes or settings.key_stored_bytes,
            max_priority=settings.key_max_priority if record.max_priority is None else record.max_priority,
        )


def _unknown(authorization: str | None) -> Unauthenticated:
    if not authorization:
        return Unauthenticated("missing_key", "Send an API key in the header `Authorization: Bearer …`.")
    return Unauthenticated("invalid_key", "There is no such API key.")


def _hash(secret: str) -> str:
    # plain SHA-256 will do: there is no dictionary of 256 random bits
    return hashlib.sha256(secret.encode()).hexdigest()
