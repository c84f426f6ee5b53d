"""Answer records and their event logs: what a reader needs to follow an answer from any replica."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import orjson

from service.store import keys
from service.store.connection import StoreClient, text
from service.store.event_log import EventLog, LogEvent
from service.store.records import AnswerRecord, MessageRecord

_CANCEL_TTL = 600

# Appends events and, at the end, the record and the turn; gives the session free in the same moment. Does nothing to an
# answer that was erased, has ended, or has another owner by now: all in one step, so that an owner who was paused
# cannot write behind its successor. May be repeated: an event whose number is in the log already is refused by XADD.
# Any other refusal (no memory) fails the write, and so does a log that ends before what was written last: an event must
# not be missing in silence.
_WRITE = """
if redis.call('exists', KEYS[1]) == 0 then return 0 end
local num_events = tonumber(ARGV[4])
local last = redis.call('xrevrange', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last and (last[2][2] == 'done' or last[2][2] == 'error') then
  return last[1] == (ARGV[4 * num_events + 1] or '') .. '-0' and 1 or 0
end
if redis.call('hget', KEYS[5], 'token') ~= ARGV[2] then return 0 end
local last_number = last and tonumber(string.match(last[1], '^%d+')) or 0
if num_events > 0 and tonumber(ARGV[5]) > last_number + 1 then return 3 end
local at, has_gained = 5, false
for _ = 1, num_events do
  local entry = {KEYS[2], ARGV[at] .. '-0', 'name', ARGV[at + 1], 'data', ARGV[at + 2]}
  if ARGV[at + 3] ~= '' then
    has_gained = true
    entry[7], entry[8] = 'tokens', ARGV[at + 3]
  end
  local id = redis.pcall('xadd', unpack(entry))
  if type(id) == 'table' and id.err and not string.find(id.err, 'equal or smaller', 1, true) then return id end
  at = at + 4
end
if has_gained then redis.call('hdel', KEYS[5], 'barren') end
if at <= #ARGV then
  redis.call('set', KEYS[1], ARGV[at])
  for i = at + 1, #ARGV, 2 do redis.call('hset', KEYS[3], ARGV[i], ARGV[i + 1]) end
  if redis.call('get', KEYS[4]) == ARGV[1] then redis.call('del', KEYS[4]) end
  redis.call('del', KEYS[5], KEYS[6], KEYS[7])
  redis.call('srem', KEYS[8], ARGV[3])
  return 1
end
return redis.call('exists', KEYS[7]) == 1 and 2 or 1
"""

# The session's lease may have run out while the question was looked at; if nobody else came, it is simply taken again.
# From now on it stays until the answer has ended: the session is busy also while nobody is giving it.
_CREATE = """
local holder = redis.call('get', KEYS[2])
if redis.call('exists', KEYS[1]) == 0 or (holder and holder ~= ARGV[1]) then return 0 end
if redis.call('hlen', KEYS[3]) ~= tonumber(ARGV[2]) then return 0 end
redis.call('set', KEYS[2], ARGV[1])
redis.call('sadd', KEYS[4], ARGV[1])
redis.call('set', KEYS[5], ARGV[4])
redis.call('xadd', KEYS[6], ARGV[5] .. '-0', 'name', ARGV[6], 'data', ARGV[7])
redis.call('hset', KEYS[7], 'token', ARGV[8])
redis.call('set', KEYS[8], ARGV[8], 'PX', ARGV[3])
redis.call('sadd', KEYS[9], ARGV[9])
return 1
"""

_TAKE = """
if redis.call('sismember', KEYS[4], ARGV[3]) == 0 then return 0 end
if redis.call('exists', KEYS[1]) == 0 then
  redis.call('srem', KEYS[4], ARGV[3])
  return 0
end
if redis.call('exists', KEYS[3]) == 1 then return 0 end
local barren = 0
if redis.call('hdel', KEYS[2], 'released') == 0 then barren = redis.call('hincrby', KEYS[2], 'barren', 1) end
redis.call('hset', KEYS[2], 'token', ARGV[1])
redis.call('set', KEYS[3], ARGV[1], 'PX', ARGV[2])
return barren + 1
"""

_RENEW = """
if redis.call('hget', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('set', KEYS[2], ARGV[1], 'PX', ARGV[2])
return redis.call('exists', KEYS[3]) == 1 and 2 or 1
"""

_RELEASE = """
if redis.call('hget', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('hset', KEYS[1], 'released', 1)
redis.call('hdel', KEYS[1], 'token')
return redis.call('del', KEYS[2])
"""


# Of an answer that was erased nothing may come back.
_LEAVE_WORD = "if redis.call('exists', KEYS[1]) == 1 then redis.call('set', KEYS[2], 1, 'PX', ARGV[1]) end"


class Hold(IntEnum):
    """What an owner learns of its answer when it writes to it or renews its lease."""

    LOST = 0
    """It was erased, has ended, or has another owner."""
    OURS = 1
    CANCELLED = 2
    """It is ours, and somebody asked for it to stop."""
    BROKEN = 3
    """It is ours, but the store has lost the end of its log: nothing was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How an answer ended: its final record, and the turn that enters the history (none after an error).

    `number` is the place of the turn's first message in the session's history.
    """

    record: AnswerRecord
    number: int
    turn: tuple[MessageRecord, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerWrite:
    """What one answer gained since the last write."""

    tenant: str
    answer_id: str
    session_id: str
    owner: str
    """The token under which the writer owns the answer."""
    events: tuple[LogEvent, ...]
    ending: Ending | None = None


class AnswerStore:
    """The answers of all tenants."""

    def __init__(self, redis: StoreClient) -> None:
        self._redis = redis
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
    ) -> bool:
        """Keep a new answer, with the first event of its log, and make its session busy until it has ended.

        `owner` may write it from now on. False when the session was erased or has gone on meanwhile: another answer
        holds its lease, or its history has no longer `num_messages` messages.
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
        )
        return bool(await self._redis.eval(_CREATE, len(names), *names, *arguments))

    async def get(self, tenant: str, answer_id: str) -> AnswerRecord | None:
        """The record, if there is one."""
        document = await self._redis.get(keys.answer(tenant, answer_id))
        return AnswerRecord.model_validate_json(document) if document else None

    async def write(self, writes: Sequence[AnswerWrite]) -> list[Hold]:
        """Append the events of many answers in one round trip; says of each whether it is still the writer's.

        May be repeated after an error: event numbers and message numbers are the writer's.
        """
        async with self._redis.pipeline(transaction=False) as pipeline:
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
                pipeline.eval(_WRITE, len(names), *names, *_arguments(write))
            return [Hold(hold) for hold in await pipeline.execute()]

    # -- who gives an answer

    async def take(self, tenant: str, answer_id: str, owner: str, *, lease_seconds: float) -> int | None:
        """Become the owner of an answer that nobody gives: from now on no earlier owner can write it.

        Returns:
            How many owners in a row, the last included, died without a token gained; None if it is not to be had,
            because it is being given, or has ended, or was erased.
        """
        names = (
            keys.answer(tenant, answer_id),
            keys.answer_owner(tenant, answer_id),
            keys.answer_lease(tenant, answer_id),
            keys.running_answers(),
        )
        arguments = (owner, _milliseconds(lease_seconds), keys.running_answer(tenant, answer_id))
        taken: Any = await self._redis.eval(_TAKE, len(names), *names, *arguments)
        return int(taken) - 1 if taken else None

    async def renew(self, tenant: str, answer_id: str, owner: str, *, lease_seconds: float) -> Hold:
        """Prolong an owner's lease; one that ran out is taken again, unless there is another owner by now."""
        names = (
            keys.answer_owner(tenant, answer_id),
            keys.answer_lease(tenant, answer_id),
            keys.answer_cancel(tenant, answer_id),
        )
        return Hold(int(await self._redis.eval(_RENEW, len(names), *names, owner, str(_milliseconds(lease_seconds)))))

    async def release(self, tenant: str, answer_id: str, owner: str) -> None:
        """Let another replica have the answer at once; the owner can write it no more."""
        names = keys.answer_owner(tenant, answer_id), keys.answer_lease(tenant, answer_id)
        await self._redis.eval(_RELEASE, len(names), *names, owner)

    async def is_owned(self, tenant: str, answer_id: str) -> bool:
        """Whether some replica gives the answer, as far as leases tell."""
        return bool(await self._redis.exists(keys.answer_lease(tenant, answer_id)))

    async def orphans(self) -> list[tuple[str, str]]:
        """Tenant and id of every answer that is in progress and that nobody gives."""
        running = await self._running()
        if not running:
            return []
        async with self._redis.pipeline(transaction=False) as pipeline:
            for tenant, answer_id in running:
                pipeline.exists(keys.answer_lease(tenant, answer_id))
            owned = await pipeline.execute()
        return [orphan for orphan, is_owned in zip(running, owned, strict=True) if not is_owned]

    async def running(self, tenant: str) -> dict[str, str]:
        """The sessions in which an answer is being given, and that answer."""
        ids = [answer_id for owner, answer_id in await self._running() if owner == tenant]
        documents = await self._redis.mget([keys.answer(tenant, answer_id) for answer_id in ids]) if ids else []
        records = [AnswerRecord.model_validate_json(document) for document in documents if document]
        return {record.session_id: record.id for record in records if record.status == "in_progress"}

    async def _running(self) -> list[tuple[str, str]]:
        members = await self._redis.smembers(keys.running_answers())
        return [_tenant_and_id(text(member)) for member in members]

    # -- reading

    async def read(self, tenant: str, answer_id: str, *, after: int, block: float = 0) -> list[LogEvent]:
        """Events with a number greater than `after`; waits up to `block` seconds for the first of them."""
        return await self._log.read(keys.answer_events(tenant, answer_id), after=after, block=block)

    def follow(self, tenant: str, answer_id: str, *, after: int) -> "_Interim":
        return _Interim(self, tenant, answer_id, after)

    async def whole_log(self, tenant: str, answer_id: str) -> list[LogEvent]:
        """All events there are."""
        events: list[LogEvent] = []
        while page := await self.read(tenant, answer_id, after=events[-1].number if events else 0, block=0):
            events += page
        return events

    # -- word for the owner

    async def ask_to_cancel(self, tenant: str, answer_id: str) -> None:
        """Leave word for whichever replica owns the answer that it shall stop."""
        await self._leave_word(tenant, answer_id, keys.answer_cancel(tenant, answer_id), seconds=_CANCEL_TTL)

    async def mark_read(self, tenant: str, answer_id: str, *, seconds: float) -> None:
        """Leave word for the answer's owner that somebody at another replica wants it for so long."""
        await self._leave_word(tenant, answer_id, keys.answer_reader(tenant, answer_id), seconds=seconds)

    async def wanted_for(self, tenant: str, answer_id: str) -> float:
        """For how many seconds somebody at another replica still wants the answer; 0 if nobody does."""
        milliseconds = await self._redis.pttl(keys.answer_reader(tenant, answer_id))
        return max(0, int(milliseconds)) / 1000

    async def _leave_word(self, tenant: str, answer_id: str, word: str, *, seconds: float) -> None:
        await self._redis.eval(_LEAVE_WORD, 2, keys.answer(tenant, answer_id), word, str(_milliseconds(seconds)))


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


class _Interim:
    def __init__(self, store: AnswerStore, tenant: str, answer_id: str, after: int) -> None:
        self.store, self.tenant, self.answer_id, self.after = store, tenant, answer_id, after

    async def __aenter__(self) -> "_Interim":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def next(self, *, timeout: float) -> list[LogEvent]:
        events = await self.store.read(self.tenant, self.answer_id, after=self.after, block=timeout)
        if events:
            self.after = events[-1].number
        return events
