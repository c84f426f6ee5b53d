"""`Idempotency-Key`: the id of a request's result, so that a repeated request finds it instead of making another."""

import hashlib
from dataclasses import dataclass
from typing import Any

from service.errors import InvalidRequest
from service.store import keys
from service.store.connection import StoreClient, text

_CLAIM = """
local claimed = redis.call('get', KEYS[1])
if claimed then return claimed end
redis.call('set', KEYS[1], ARGV[1], 'EX', ARGV[2])
return ARGV[1]
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeatable:
    """A request that its sender may repeat: the key that they chose, and a digest of the request."""

    key: str
    fingerprint: str

    @classmethod
    def of(cls, key: str, *, method: str, path: str, body_sha256: str) -> "Repeatable":
        """The request with an idempotency key."""
        request = f"{method} {path}\n{body_sha256}".encode()
        return cls(key=key, fingerprint=hashlib.sha256(request).hexdigest())


class IdempotencyStore:
    """The idempotency keys of all tenants, each with the id of its request's result.

    The id is chosen before the request is carried out. A repeated request gets the same id at every replica. If
    something exists under the id, that is the result; otherwise the request was refused or its replica died, and it is
    carried out now, under that id. So no write is needed after the request, and none can be lost.
    """

    def __init__(self, redis: StoreClient, *, ttl: int) -> None:
        self._redis = redis
        self._ttl = ttl

    async def claim(self, tenant: str, request: Repeatable, *, result_id: str) -> str:
        """The id of the request's result: `result_id` if the key is new, else the id that was claimed with it before.

        Raises:
            InvalidRequest: the key was used for a different request.
        """
        name = keys.idempotency(tenant, hashlib.sha256(request.key.encode()).hexdigest())
        claimed: Any = await self._redis.eval(_CLAIM, 1, name, f"{request.fingerprint} {result_id}", self._ttl)
        fingerprint, claimed_id = text(claimed).split(" ")
        if fingerprint != request.fingerprint:
            raise InvalidRequest(
                "idempotency_key_reused",
                "This key was used for a different request; use a new key for each request.",
                param="Idempotency-Key",
            )
        return claimed_id
