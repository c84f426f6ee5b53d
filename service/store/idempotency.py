"""`Idempotency-Key`: which id a request's outcome has, so that its repetition finds it instead of making another."""

import hashlib
from dataclasses import dataclass

from service.errors import InvalidRequest
from service.store import keys
from service.store.connection import StoreClient, text


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeatable:
    """A request that its sender may repeat: the key they chose, and a digest of all they asked."""

    key: str
    fingerprint: str

    @classmethod
    def of(cls, key: str, *, method: str, path: str, body_sha256: str) -> "Repeatable":
        """A request under a key."""
        asked = f"{method} {path}\n{body_sha256}".encode()
        return cls(key=key, fingerprint=hashlib.sha256(asked).hexdigest())


class IdempotencyStore:
    """What the tenants' idempotency keys stand for.

    An id is chosen before the request is done. Whoever repeats the request, at any replica, is given the same id: if
    there is something under it, that is the outcome; if not, the request was refused or its replica died, and is done
    now, under that id. So nothing has to be written when the request is done, and nothing can be lost in between.
    """

    def __init__(self, redis: StoreClient, *, ttl: int) -> None:
        self._redis = redis
        self._ttl = ttl

    async def claim(self, tenant: str, request: Repeatable, *, result_id: str) -> str:
        """The id of the request's outcome: `result_id`, or the one that an earlier request with this key was given.

        Raises:
            InvalidRequest: the earlier request asked something else.
        """
        name = keys.idempotency(tenant, hashlib.sha256(request.key.encode()).hexdigest())
        while not await self._redis.set(name, f"{request.fingerprint} {result_id}", nx=True, ex=self._ttl):
            if earlier := await self._redis.get(name):  # else it has expired this very moment
                fingerprint, earlier_id = text(earlier).split(" ")
                if fingerprint != request.fingerprint:
                    raise InvalidRequest(
                        "idempotency_key_reused",
                        "This key came with another request before; take a new key for each request.",
                        param="Idempotency-Key",
                    )
                return earlier_id
        return result_id
