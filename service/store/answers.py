"""Answer records, their event logs and their owners: what any replica needs to follow or take over an answer."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

import orjson

from service.store import answer_scripts, keys
from service.store.connection import StoreClient, text
from service.store.event_log import EventLog, LogEvent
from service.store.log_follower import FollowedLog, LogFollower
from service.store.records import AnswerRecord, MessageRecord

_CANCEL_TTL = 600


class CreateOutcome(StrEnum):
    """What became of a new answer; anything but `CREATED` has changed nothing."""

    CREATED = "created"
    BUSY = "busy"
    """Another answer is in progress in the session."""
    CHANGED = "changed"
    """The session's history has another number of messages by now."""
    DUPLICATE = "duplicate"
    """There is an answer with this id."""
    GONE = "gone"
    """The session does not exist."""


class OwnerVerdict(IntEnum):
    """What the store replies to an owner that writes to its answer or renews its lease."""

    LOST = 0
    """The answer was erased, has ended or has another owner; nothing was written."""
    OWNED = 1
    CANCEL_REQUESTED = 2
    """The answer is owned as before, and a client asked to cancel it."""
    LOG_TRUNCATED = 3
    """The answer is owned as before, but the store has lost the end of its log; nothing was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How an answer ended: its final record, and the messages that enter the history (none after an error).

    `number` is the index of the first of them in the session's history.
    """

    record: AnswerRecord
    number: int
    turn: tuple[MessageRecord, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerWrite:
    """What to add to one answer: the events since the last write and, at its end, how it ended."""

    tenant: str
    answer_id: str
    session_id: str
    owner: str
    """The writer's token; the store refuses the write if it is not the current owner's."""
    events: tuple[LogEvent, ...]
    ending: Ending | None = None


class AnswerStore:
    """The answers of all tenants."""

    def __init__(self, redis: StoreClient, follower: LogFollower, *, owners: StoreClient | None = None) -> None:
        """`owners` has connections of its own for what owners write, which readers must not delay; default: `redis`."""
        self._redis = redis
        self._owners = owners or redis
        self._follower = follower
        self._log = EventLog(redis)

    async def create(
        self,
        tenant: str,
        record: AnswerRecord,
        *,
        opening: LogEvent,
        num_messages: int,
        owner: str,
        lease_seconds: float,
        generator: str | None = None,
    ) -> CreateOutcome:
        """Store a new answer with the first event of its log, and make its session busy until the answer ends.

        `num_messages` is the length of the history that the question was asked with. The token `owner` may write the
        answer from now on, and its lease begins. `generator` names what generates the answer, for `generator`.
        """
        names = (
            keys.session(tenant, record.session_id),
            keys.session_lease(tenant, record.session_id),
            keys.messages(tenant, record.session_id),
            keys.session_answers(tenant, record.session_id),
            keys.answer(tenant, record.id),
            keys.answer_events(tenant, record.id),
            keys.answer_owner(tenant, record.id),
            keys.answer_lease(tenant, record.id),
            keys.running_answers(),
        )
        arguments = (
            record.id,
            num_messages,
            _milliseconds(lease_seconds),
            record.model_dump_json(),
            opening.number,
            opening.name,
            orjson.dumps(opening.data),
            owner,
            keys.running_answer(tenant, record.id),
            generator or "",
        )
        outcome: Any = await self._redis.eval(answer_scripts.CREATE, len(names), *names, *arguments)
        return CreateOutcome(text(outcome))

    async def get(self, tenant: str, answer_id: str) -> AnswerRecord | None:
        """The record, if there is one."""
        document = await self._redis.get(keys.answer(tenant, answer_id))
        return AnswerRecord.model_validate_json(document) if document else None

    async def write(self, writes: Sequence[AnswerWrite]) -> list[OwnerVerdict]:
        """Append the events of many answers in one round trip; returns a verdict for each write.

        May be repeated after an error, because the writer chooses the numbers of events and messages.
        """
        async with self._owners.pipeline(transaction=False) as pipeline:
            for write in writes:
                names = (
                    keys.answer(write.tenant, write.answer_id),
                    keys.answer_events(write.tenant, write.answer_id),
                    keys.messages(write.tenant, write.session_id),
                    keys.session_lease(write.tenant, write.session_id),
                    keys.answer_owner(write.tenant, write.answer_id),
                    keys.answer_lease(write.tenant, write.answer_id),
                    keys.answer_cancel(write.tenant, write.answer_id),
                    keys.running_answers(),
                )
                pipeline.eval(answer_scripts.WRITE, len(names), *names, *_arguments(write))
            return [OwnerVerdict(verdict) for verdict in await pipeline.execute()]

    # -- owners

    async def take(
        self, tenant: str, answer_id: str, owner: str, *, lease_seconds: float, generator: str | None = None
    ) -> int | None:
        """Become the owner of an answer whose owner's lease has ended; no earlier owner can write it from now on.

        `generator` is recorded if none is.

        Returns:
            How many owners in a row, up to the last one, died without adding a token; None if the answer has an owner,
            has ended or was erased.
        """
        names = (
            keys.answer(tenant, answer_id),
            keys.answer_owner(tenant, answer_id),
            keys.answer_lease(tenant, answer_id),
            keys.running_answers(),
        )
        arguments = (owner, _milliseconds(lease_seconds), keys.running_answer(tenant, answer_id), generator or "")
        taken: Any = await self._redis.eval(answer_scripts.TAKE, len(names), *names, *arguments)
        return int(taken) - 1 if taken else None

    async def generator(self, tenant: str, answer_id: str) -> str | None:
        """What generates an answer in progress; None if that was not recorded."""
        value: Any = await self._redis.hget(keys.answer_owner(tenant, answer_id), "generator")
        return None if value is None else text(value)

    async def unserved_since(self, tenant: str, answer_id: str, *, now: float) -> float | None:
        """When this was first called for an answer that has had no owner since; None if it has one, or is over."""
        names = (
            keys.answer(tenant, answer_id),
            keys.answer_owner(tenant, answer_id),
            keys.answer_lease(tenant, answer_id),
            keys.running_answers(),
        )
        arguments = (repr(now), keys.running_answer(tenant, answer_id))
        since: Any = await self._redis.eval(answer_scripts.WAIT, len(names), *names, *arguments)
        return None if since is None else float(text(since))

    async def renew(self, tenant: str, answer_id: str, owner: str, *, lease_seconds: float) -> OwnerVerdict:
        """Extend an owner's lease, also one that has run out, unless the answer has another owner by now."""
        names = (
            keys.answer_owner(tenant, answer_id),
            keys.answer_lease(tenant, answer_id),
            keys.answer_cancel(tenant, answer_id),
        )
        return OwnerVerdict(
            int(
                await self._owners.eval(
                    answer_scripts.RENEW, len(names), *names, owner, str(_milliseconds(lease_seconds))
                )
            )
        )

    async def release(self, tenant: str, answer_id: str, owner: str) -> None:
        """End an owner's lease, so that another replica can take the answer at once."""
        names = keys.answer_owner(tenant, answer_id), keys.answer_lease(tenant, answer_id)
        await self._owners.eval(answer_scripts.RELEASE, len(names), *names, owner)

    async def is_owned(self, tenant: str, answer_id: str) -> bool:
        """Whether a replica holds the lease of the answer."""
        return bool(await self._redis.exists(keys.answer_lease(tenant, answer_id)))

    async def orphans(self) -> list[tuple[str, str]]:
        """Tenant and id of every answer in progress that no replica owns."""
        running = await self._running()
        if not running:
            return []
        async with self._redis.pipeline(transaction=False) as pipeline:
            for tenant, answer_id in running:
                pipeline.exists(keys.answer_lease(tenant, answer_id))
            owned = await pipeline.execute()
        return [orphan for orphan, is_owned in zip(running, owned, strict=True) if not is_owned]

    async def running(self, tenant: str) -> dict[str, str]:
        """The sessions in which an answer is in progress, each with the id of that answer."""
        ids = [answer_id for other, answer_id in await self._running() if other == tenant]
        documents = await self._redis.mget([keys.answer(tenant, answer_id) for answer_id in ids]) if ids else []
        records = [AnswerRecord.model_validate_json(document) for document in documents if document]
        return {record.session_id: record.id for record in records if record.status == "in_progress"}

    async def _running(self) -> list[tuple[str, str]]:
        members = await self._redis.smembers(keys.running_answers())
        return [_tenant_and_id(text(member)) for member in members]

    # -- reading

    def follow(self, tenant: str, answer_id: str, *, after: int) -> AbstractAsyncContextManager[FollowedLog]:
        """Follow an answer's log from the first event with a number greater than `after`."""
        return self._follower.follow(keys.answer_events(tenant, answer_id), after=after)

    async def read(self, tenant: str, answer_id: str, *, after: int) -> list[LogEvent]:
        """The first events with a number greater than `after`, at most `PAGE_SIZE`."""
        return await self._log.read(keys.answer_events(tenant, answer_id), after=after)

    async def whole_log(self, tenant: str, answer_id: str) -> list[LogEvent]:
        """All events that the log contains now."""
        events: list[LogEvent] = []
        while page := await self.read(tenant, answer_id, after=events[-1].number if events else 0):
            events += page
        return events

    # -- flags for the owner

    async def request_cancel(self, tenant: str, answer_id: str) -> None:
        """Ask the answer's owner to cancel it; the owner sees this when it writes or renews its lease."""
        await self._set_flag(tenant, answer_id, keys.answer_cancel(tenant, answer_id), seconds=_CANCEL_TTL)

    async def is_cancel_requested(self, tenant: str, answer_id: str) -> bool:
        """Whether a client asked to cancel an answer that has not ended since."""
        return bool(await self._redis.exists(keys.answer_cancel(tenant, answer_id)))

    async def mark_followed(self, tenant: str, answer_id: str, *, seconds: float) -> None:
        """Record for the answer's owner that another replica has a reader of it, for the next `seconds`."""
        await self._set_flag(tenant, answer_id, keys.answer_reader(tenant, answer_id), seconds=seconds)

    async def followed_for(self, tenant: str, answer_id: str) -> float:
        """For how many seconds from now `mark_followed` is in force; 0 if it is not."""
        milliseconds = await self._redis.pttl(keys.answer_reader(tenant, answer_id))
        return max(0, int(milliseconds)) / 1000

    async def _set_flag(self, tenant: str, answer_id: str, flag: str, *, seconds: float) -> None:
        names = keys.answer(tenant, answer_id), flag
        await self._redis.eval(answer_scripts.SET_FLAG, len(names), *names, str(_milliseconds(seconds)))


def _arguments(write: AnswerWrite) -> list[str | bytes | int]:
    arguments: list[str | bytes | int] = [
        write.answer_id,
        write.owner,
        keys.running_answer(write.tenant, write.answer_id),
        len(write.events),
    ]
    for event in write.events:
        tokens = orjson.dumps(event.token_ids) if event.token_ids else b""
        arguments += [event.number, event.name, orjson.dumps(event.data), tokens]
    if write.ending is not None:
        arguments.append(write.ending.record.model_dump_json())
        for number, message in enumerate(write.ending.turn, start=write.ending.number):
            arguments += [number, message.model_dump_json()]
    return arguments


def _tenant_and_id(member: str) -> tuple[str, str]:
    tenant, _, answer_id = member.rpartition("/")
    return tenant, answer_id


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
