"""API keys in the store: records with a hash of the secret, never the secret, and what each key has used."""

import math
import time
from collections.abc import Sequence
from typing import cast

from service.access.scopes import Scope
from service.store import keys
from service.store.connection import StoreClient, text
from service.store.records import AnswerRecord, Record

# Returns a key's record and the milliseconds to wait before its next request; 0 if this one is counted.
# The rate is one number a key: the time at which all its requests so far are paid off at an even rate. A minute's
# requests may come at once. A wrong secret or a missing scope counts nothing.
_GET_AND_COUNT = """
local document = redis.call('hget', KEYS[1], ARGV[1])
if not document then return {false, 0} end
local record = cjson.decode(document)
if record.secret_sha256 ~= ARGV[2] then return {document, 0} end
local has_scope = false
for _, scope in ipairs(record.scopes) do has_scope = has_scope or scope == ARGV[3] end
if not has_scope then return {document, 0} end
local per_minute = record.requests_per_minute
if type(per_minute) ~= 'number' or per_minute == 0 then per_minute = tonumber(ARGV[4]) end
if not per_minute or per_minute == 0 then return {document, 0} end
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local interval = 60000 / per_minute
local paid = math.max(tonumber(redis.call('get', KEYS[2]) or now), now) + interval
if paid - now > 60000 then return {document, math.ceil(paid - now - 60000)} end
redis.call('set', KEYS[2], string.format('%.3f', paid), 'PX', math.ceil(paid - now))
return {document, 0}
"""
# Removes answers that have ended, then adds new ones if the limit allows all of them.
# Arguments: limit, time, number of new answers, new answers, ended answers.
_START_ANSWERS = """
local last = 3 + tonumber(ARGV[3])
for i = last + 1, #ARGV do redis.call('zrem', KEYS[1], ARGV[i]) end
local num_new = 0
for i = 4, last do if not redis.call('zscore', KEYS[1], ARGV[i]) then num_new = num_new + 1 end end
if num_new > 0 and redis.call('zcard', KEYS[1]) + num_new > tonumber(ARGV[1]) then return 0 end
for i = 4, last do redis.call('zadd', KEYS[1], ARGV[2], ARGV[i]) end
redis.call('expire', KEYS[1], 86400)
return 1
"""
_RECORD_TIMEOUT = 60.0  # seconds that an answer counts without a record
_HAS_RECORD = 0.0  # a score in place of the time


class ApiKeyRecord(Record):
    """A stored API key. A limit that is null is the server's default."""

    id: str
    secret_sha256: str
    name: str
    tenant: str
    scopes: tuple[Scope, ...]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    requests_per_minute: int | None = None
    concurrent_answers: int | None = None
    stored_bytes: int | None = None
    max_priority: int | None = None

    def is_valid(self) -> bool:
        """Whether the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or time.time() < self.expires_at)


class ApiKeyStore:
    """All API keys. A revoked key stays stored: a service whose last key was revoked must still require one."""

    def __init__(self, redis: StoreClient) -> None:
        self._redis = redis

    async def add(self, record: ApiKeyRecord) -> None:
        """Store a new key."""
        await self._redis.hset(keys.api_keys(), record.id, record.model_dump_json())

    async def get(self, key_id: str) -> ApiKeyRecord | None:
        """The key with this id, valid or not."""
        document = await self._redis.hget(keys.api_keys(), key_id)
        return ApiKeyRecord.model_validate_json(document) if document else None

    async def all(self) -> list[ApiKeyRecord]:
        """Every key that was ever added, oldest first."""
        documents = await self._redis.hvals(keys.api_keys())
        return sorted(map(ApiKeyRecord.model_validate_json, documents), key=lambda record: record.created_at)

    async def any(self) -> bool:
        """Whether a key was ever added."""
        return bool(await self._redis.exists(keys.api_keys()))

    async def revoke(self, key_id: str) -> bool:
        """Revoke a key, at once and for every replica; false if there is no key with this id."""
        record = await self.get(key_id)
        if record is None:
            return False
        if record.revoked_at is None:
            revoked = record.model_copy(update={"revoked_at": time.time()})
            await self._redis.hset(keys.api_keys(), key_id, revoked.model_dump_json())
        return True

    async def clear(self) -> None:
        """Delete every key: services that may be open without keys are open again."""
        await self._redis.delete(keys.api_keys())

    # -- what a key has used

    async def get_and_count(
        self, key_id: str, *, secret_sha256: str, scope: Scope, default_per_minute: int | None
    ) -> tuple[ApiKeyRecord | None, int]:
        """The record of a key, with one request counted against its rate, in one round trip.

        Nothing is counted for a wrong secret, a scope that the key does not have, or any scope but `use`.

        Returns:
            The record, or None if there is none; and the seconds until the request would be within the rate. It is
            counted if they are 0.
        """
        if scope is not Scope.USE:
            return await self.get(key_id), 0
        names = (keys.api_keys(), keys.request_rate(key_id))
        values = (key_id, secret_sha256, scope.value, default_per_minute or 0)
        document, milliseconds = await self._redis.eval(_GET_AND_COUNT, len(names), *names, *values)
        record = None if document is None else ApiKeyRecord.model_validate_json(document)
        return record, math.ceil(int(milliseconds) / 1000)

    async def start_answers(self, tenant: str, key_id: str, answer_ids: Sequence[str], *, limit: int) -> bool:
        """Count answers that are about to be requested: all, or none if the key would have more than `limit`.

        The end of an answer need not be reported: when the limit is reached, the answers' own records show which
        have ended, also those of replicas that died.
        """
        name = keys.answers_of_key(key_id)
        values: tuple[str | float, ...] = (limit, time.time(), len(answer_ids), *answer_ids)
        if await self._redis.eval(_START_ANSWERS, 1, name, *values):
            return True
        ended = await self._ended(tenant, name)
        return bool(ended) and bool(await self._redis.eval(_START_ANSWERS, 1, name, *values, *ended))

    async def renew_answers(self, key_id: str, answer_ids: Sequence[str]) -> None:
        """Report that answers without a record still run; without renewal they count for `_RECORD_TIMEOUT`."""
        await self._redis.zadd(keys.answers_of_key(key_id), dict.fromkeys(answer_ids, time.time()), xx=True)

    async def mark_recorded(self, key_id: str, answer_id: str) -> None:
        """Report that an answer has a record: from now on it has ended as soon as the record is erased."""
        await self._redis.zadd(keys.answers_of_key(key_id), {answer_id: _HAS_RECORD}, xx=True)

    async def end_answers(self, key_id: str, answer_ids: Sequence[str]) -> None:
        """Stop counting answers that were refused, or that have ended and have no record."""
        await self._redis.zrem(keys.answers_of_key(key_id), *answer_ids)

    async def _ended(self, tenant: str, name: str) -> list[str]:
        rows = cast(list[tuple[bytes, float]], await self._redis.zrange(name, 0, -1, withscores=True))
        counted = [(text(member), score) for member, score in rows]
        documents = await self._redis.mget([keys.answer(tenant, answer_id) for answer_id, _ in counted])
        return [
            answer_id
            for (answer_id, started_at), document in zip(counted, documents, strict=True)
            if _has_ended(document, started_at=started_at)
        ]


def _has_ended(document: bytes | str | None, *, started_at: float) -> bool:
    if document is None:
        return time.time() - started_at > _RECORD_TIMEOUT  # erased, unless it is still being accepted
    return AnswerRecord.model_validate_json(document).status != "in_progress"
