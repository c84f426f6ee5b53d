"""API keys at rest: records with the hash of a secret, never the secret; and how much each key has used."""

import math
import time
from typing import cast

from service.access.scopes import Scope
from service.store import keys
from service.store.connection import StoreClient, text
from service.store.records import AnswerRecord, Record

# One number a key: when all its requests so far are paid off at the even rate. A whole minute may be used at once.
_TAKE_REQUEST = """
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local interval = 60000 / tonumber(ARGV[1])
local paid = math.max(tonumber(redis.call('get', KEYS[1]) or now), now) + interval
if paid - now > 60000 then return math.ceil(paid - now - 60000) end
redis.call('set', KEYS[1], string.format('%.3f', paid), 'PX', math.ceil(paid - now))
return 0
"""
# Makes room by removing what has ended, then takes a place if there is one.
_TAKE_ANSWER = """
for i = 4, #ARGV do redis.call('zrem', KEYS[1], ARGV[i]) end
if redis.call('zcard', KEYS[1]) >= tonumber(ARGV[1]) and not redis.call('zscore', KEYS[1], ARGV[2]) then return 0 end
redis.call('expire', KEYS[1], 86400)
return redis.call('zadd', KEYS[1], ARGV[3], ARGV[2]) and 1
"""
_ARRIVAL = 60.0  # seconds in which an answer that was given a place gets a record
_HAS_RECORD = 0.0  # in the place of the time it was given one


class ApiKeyRecord(Record):
    """What is kept of an API key. A limit that is null is the server's default."""

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
        """Whether it opens anything now."""
        return self.revoked_at is None and (self.expires_at is None or time.time() < self.expires_at)


class ApiKeyStore:
    """All API keys. A revoked key stays in the list, so that no service opens again because its last key is gone."""

    def __init__(self, redis: StoreClient) -> None:
        self._redis = redis

    async def add(self, record: ApiKeyRecord) -> None:
        """Keep a new key."""
        await self._redis.hset(keys.api_keys(), record.id, record.model_dump_json())

    async def get(self, key_id: str) -> ApiKeyRecord | None:
        """The key of this id, valid or not."""
        document = await self._redis.hget(keys.api_keys(), key_id)
        return ApiKeyRecord.model_validate_json(document) if document else None

    async def all(self) -> list[ApiKeyRecord]:
        """Every key there has been, oldest first."""
        documents = await self._redis.hvals(keys.api_keys())
        return sorted(map(ApiKeyRecord.model_validate_json, documents), key=lambda record: record.created_at)

    async def any(self) -> bool:
        """Whether there has ever been a key."""
        return bool(await self._redis.exists(keys.api_keys()))

    async def revoke(self, key_id: str) -> bool:
        """Let a key open nothing any more, from now on and at every replica; false when there is none of this id."""
        record = await self.get(key_id)
        if record is None:
            return False
        if record.revoked_at is None:
            revoked = record.model_copy(update={"revoked_at": time.time()})
            await self._redis.hset(keys.api_keys(), key_id, revoked.model_dump_json())
        return True

    async def clear(self) -> None:
        """Forget every key: services that may be open without keys are open again."""
        await self._redis.delete(keys.api_keys())

    # -- what a key has used

    async def take_request(self, key_id: str, *, per_minute: int) -> int:
        """Count one request; 0, or the seconds until it would be within the rate, and then it is not counted."""
        milliseconds = await self._redis.eval(_TAKE_REQUEST, 1, keys.request_rate(key_id), per_minute)
        return math.ceil(int(milliseconds) / 1000)

    async def take_answer(self, tenant: str, key_id: str, answer_id: str, *, limit: int) -> bool:
        """Count an answer that is about to be asked for; false when the key has `limit` answers running or waiting.

        Nobody has to say that an answer has ended: when the places are full, the answers' own records tell who has
        left, also of those whose replica died.
        """
        name = keys.answers_of_key(key_id)
        place = (limit, answer_id, time.time())
        if await self._redis.eval(_TAKE_ANSWER, 1, name, *place):
            return True
        ended = await self._ended(tenant, name)
        return bool(ended) and bool(await self._redis.eval(_TAKE_ANSWER, 1, name, *place, *ended))

    async def keep_answer(self, key_id: str, answer_id: str) -> None:
        """Say that an answer without a record still runs; after `_ARRIVAL` of silence it loses its place."""
        await self._redis.zadd(keys.answers_of_key(key_id), {answer_id: time.time()}, xx=True)

    async def note_record(self, key_id: str, answer_id: str) -> None:
        """Say that an answer has a record now: once that is erased, it has ended."""
        await self._redis.zadd(keys.answers_of_key(key_id), {answer_id: _HAS_RECORD}, xx=True)

    async def leave_answer(self, key_id: str, answer_id: str) -> None:
        """Give back the place of an answer that was refused, or that has ended and has no record."""
        await self._redis.zrem(keys.answers_of_key(key_id), answer_id)

    async def _ended(self, tenant: str, name: str) -> list[str]:
        rows = cast(list[tuple[bytes, float]], await self._redis.zrange(name, 0, -1, withscores=True))
        places = [(text(member), score) for member, score in rows]
        documents = await self._redis.mget([keys.answer(tenant, answer_id) for answer_id, _ in places])
        return [
            answer_id
            for (answer_id, taken_at), document in zip(places, documents, strict=True)
            if _has_ended(document, taken_at=taken_at)
        ]


def _has_ended(document: bytes | str | None, *, taken_at: float) -> bool:
    if document is None:
        return time.time() - taken_at > _ARRIVAL  # erased; or it is only just being looked at
    return AnswerRecord.model_validate_json(document).status != "in_progress"
