"""Stored API keys: records with the hash of the secret, never the secret itself, and what each key has used."""

import math
import time
from typing import cast

from service.access.scopes import Scope
from service.store import keys
from service.store.connection import StoreClient, text
from service.store.records import AnswerRecord, Record

# Keeps one number per key: the time at which its requests so far are paid off at an even rate. A burst may use up the
# requests of a whole minute at once.
_TAKE_REQUEST = """
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local interval = 60000 / tonumber(ARGV[1])
local paid = math.max(tonumber(redis.call('get', KEYS[1]) or now), now) + interval
if paid - now > 60000 then return math.ceil(paid - now - 60000) end
redis.call('set', KEYS[1], string.format('%.3f', paid), 'PX', math.ceil(paid - now))
return 0
"""
# Removes the answers that have ended, then adds the new one if the limit allows it.
_TAKE_ANSWER = """
for i = 4, #ARGV do redis.call('zrem', KEYS[1], ARGV[i]) end
if redis.call('zcard', KEYS[1]) >= tonumber(ARGV[1]) and not redis.call('zscore', KEYS[1], ARGV[2]) then return 0 end
redis.call('expire', KEYS[1], 86400)
return redis.call('zadd', KEYS[1], ARGV[3], ARGV[2]) and 1
"""
_RECORD_TIMEOUT = 60.0  # seconds after which a counted answer without a record is taken to have ended
_HAS_RECORD = 0.0  # the score of an answer that has a record; before, it is the time at which it was counted


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
    """All API keys. A revoked key stays stored, so that a service does not become open when its last key is revoked."""

    def __init__(self, redis: StoreClient) -> None:
        self._redis = redis

    async def add(self, record: ApiKeyRecord) -> None:
        """Store a new key."""
        await self._redis.hset(keys.api_keys(), record.id, record.model_dump_json())

    async def get(self, key_id: str) -> ApiKeyRecord | None:
        """The key with this id, valid or not; None if there is none."""
        document = await self._redis.hget(keys.api_keys(), key_id)
        return ApiKeyRecord.model_validate_json(document) if document else None

    async def all(self) -> list[ApiKeyRecord]:
        """All keys ever created, oldest first."""
        documents = await self._redis.hvals(keys.api_keys())
        return sorted(map(ApiKeyRecord.model_validate_json, documents), key=lambda record: record.created_at)

    async def any(self) -> bool:
        """Whether a key was ever created."""
        return bool(await self._redis.exists(keys.api_keys()))

    async def revoke(self, key_id: str) -> bool:
        """Revoke a key on all replicas at once; false if there is no key with this id."""
        record = await self.get(key_id)
        if record is None:
            return False
        if record.revoked_at is None:
            revoked = record.model_copy(update={"revoked_at": time.time()})
            await self._redis.hset(keys.api_keys(), key_id, revoked.model_dump_json())
        return True

    async def clear(self) -> None:
        """Delete all keys. A service that may run without keys then accepts requests without one again."""
        await self._redis.delete(keys.api_keys())

    # -- what a key has used

    async def take_request(self, key_id: str, *, per_minute: int) -> int:
        """Count one request and return 0, or return the seconds to wait until the rate allows it and count nothing."""
        milliseconds = await self._redis.eval(_TAKE_REQUEST, 1, keys.request_rate(key_id), per_minute)
        return math.ceil(int(milliseconds) / 1000)

    async def take_answer(self, tenant: str, key_id: str, answer_id: str, *, limit: int) -> bool:
        """Count an answer before it is created; false if the key has `limit` answers running or waiting.

        Ended answers need not be reported: when the limit is reached, the answers' own records show which have ended,
        including those whose replica died.
        """
        name = keys.answers_of_key(key_id)
        place = (limit, answer_id, time.time())
        if await self._redis.eval(_TAKE_ANSWER, 1, name, *place):
            return True
        ended = await self._ended(tenant, name)
        return bool(ended) and bool(await self._redis.eval(_TAKE_ANSWER, 1, name, *place, *ended))

    async def keep_answer(self, key_id: str, answer_id: str) -> None:
        """Keep counting an answer that has no record; must be called again within `_RECORD_TIMEOUT`."""
        await self._redis.zadd(keys.answers_of_key(key_id), {answer_id: time.time()}, xx=True)

    async def note_record(self, key_id: str, answer_id: str) -> None:
        """Count an answer by its record from now on; once the record is erased, the answer has ended."""
        await self._redis.zadd(keys.answers_of_key(key_id), {answer_id: _HAS_RECORD}, xx=True)

    async def leave_answer(self, key_id: str, answer_id: str) -> None:
        """Stop counting an answer that was refused, or that has ended and has no record."""
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
        return time.time() - taken_at > _RECORD_TIMEOUT  # erased, or not created yet
    return AnswerRecord.model_validate_json(document).status != "in_progress"
