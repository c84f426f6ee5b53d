"""Session records and their messages."""

from collections.abc import Mapping, Sequence

from service.store import keys
from service.store.connection import StoreClient, text
from service.store.listing import Page, list_page
from service.store.records import MessageRecord, SessionRecord


class SessionStore:
    """The sessions of all tenants."""

    def __init__(self, redis: StoreClient) -> None:
        self._redis = redis

    async def create(self, tenant: str, record: SessionRecord) -> None:
        """Store a new session and link it to its videos."""
        async with self._redis.pipeline(transaction=True) as transaction:
            transaction.set(keys.session(tenant, record.id), record.model_dump_json())
            transaction.zadd(keys.sessions(tenant), {record.id: record.created_at})
            for video_id in record.video_ids:
                transaction.sadd(keys.video_sessions(tenant, video_id), record.id)
            await transaction.execute()

    async def get(self, tenant: str, session_id: str) -> SessionRecord | None:
        """The record, if there is one."""
        document = await self._redis.get(keys.session(tenant, session_id))
        return SessionRecord.model_validate_json(document) if document else None

    async def get_many(self, tenant: str, session_ids: Sequence[str]) -> list[SessionRecord]:
        """The records of those ids that exist, in the given order."""
        if not session_ids:
            return []
        documents = await self._redis.mget([keys.session(tenant, session_id) for session_id in session_ids])
        return [SessionRecord.model_validate_json(document) for document in documents if document]

    async def page(self, tenant: str, *, limit: int, after: str | None) -> Page:
        """Ids, newest first."""
        return await list_page(self._redis, keys.sessions(tenant), limit=limit, after=after)

    async def messages(self, tenant: str, session_id: str) -> list[MessageRecord]:
        """All messages, oldest first."""
        return _in_order(await self._redis.hgetall(keys.messages(tenant, session_id)))

    async def conversation(
        self, tenant: str, session_id: str
    ) -> tuple[SessionRecord, list[MessageRecord], str | None] | None:
        """A session's record, all its messages, oldest first, and the id of its answer in progress, in one round trip.

        None if there is no session.
        """
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.get(keys.session(tenant, session_id))
            pipeline.hgetall(keys.messages(tenant, session_id))
            pipeline.get(keys.session_lease(tenant, session_id))
            document, numbered, running_id = await pipeline.execute()
        if not document:
            return None
        running = text(running_id) if running_id else None
        return SessionRecord.model_validate_json(document), _in_order(numbered), running

    async def erase(self, tenant: str, record: SessionRecord) -> bool:
        """Erase a session with its messages and answers; false if it did not exist."""
        answer_ids = await self._redis.smembers(keys.session_answers(tenant, record.id))
        async with self._redis.pipeline(transaction=True) as transaction:
            transaction.delete(keys.session(tenant, record.id))
            transaction.zrem(keys.sessions(tenant), record.id)
            transaction.delete(
                keys.messages(tenant, record.id),
                keys.session_answers(tenant, record.id),
                keys.session_lease(tenant, record.id),
            )
            for answer_id in (text(member) for member in answer_ids):
                transaction.delete(*keys.of_answer(tenant, answer_id))
                transaction.srem(keys.running_answers(), keys.running_answer(tenant, answer_id))
            for video_id in record.video_ids:
                transaction.srem(keys.video_sessions(tenant, video_id), record.id)
            erased, *_ = await transaction.execute()
        return bool(erased)


def _in_order(numbered: Mapping[bytes | str, bytes | str]) -> list[MessageRecord]:
    return [MessageRecord.model_validate_json(numbered[number]) for number in sorted(numbered, key=int)]
