"""Records of resumable uploads, each with its progress and its result."""

import time

from service.store import keys
from service.store.connection import StoreClient
from service.store.records import UploadRecord


class UploadStore:
    """The resumable uploads of all tenants. A record is deleted when its upload expires."""

    def __init__(self, redis: StoreClient) -> None:
        self._redis = redis

    async def create(self, tenant: str, record: UploadRecord) -> None:
        """Store a new record."""
        await self._redis.set(keys.upload(tenant, record.id), record.model_dump_json(), ex=_seconds_left(record))

    async def get(self, tenant: str, upload_id: str) -> UploadRecord | None:
        """The record, if there is one."""
        document = await self._redis.get(keys.upload(tenant, upload_id))
        return UploadRecord.model_validate_json(document) if document else None

    async def update(self, tenant: str, record: UploadRecord) -> bool:
        """Replace the record; false, without a change, if it was erased or has expired."""
        name = keys.upload(tenant, record.id)
        return bool(await self._redis.set(name, record.model_dump_json(), xx=True, ex=_seconds_left(record)))

    async def erase(self, tenant: str, upload_id: str) -> bool:
        """Erase the record; false if there is none."""
        return bool(await self._redis.delete(keys.upload(tenant, upload_id)))


def _seconds_left(record: UploadRecord) -> int:
    return max(1, int(record.expires_at - time.time()))
