"""Answer records and their event logs: what a reader needs to follow an answer from any replica."""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from service.store import keys
from service.store.connection import StoreClient
from service.store.event_log import EventLog, LogEvent
from service.store.records import AnswerRecord, MessageRecord

_CANCEL_TTL = 600
_READER_TTL = 5  # seconds a reader at another replica counts as present after its last look

# Appends events and, at the end, the record and the turn; gives the session free in the same moment. Does nothing to an
# answer that was erased or has ended, and may be repeated: an event whose number is in the log already is refused by
# XADD. Any other refusal (no memory) fails the write: an event must not be missing in silence.
_WRITE = """
if redis.call('exists', KEYS[1]) == 0 then return 0 end
local num_events = tonumber(ARGV[2])
local last = redis.call('xrevrange', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last and (last[2][2] == 'done' or last[2][2] == 'error') then
  return last[1] == (ARGV[3 * num_events] or '') .. '-0' and 1 or 0
end
local at = 3
for _ = 1, num_events do
  local id = redis.pcall('xadd', KEYS[2], ARGV[at] .. '-0', 'name', ARGV[at + 1], 'data', ARGV[at + 2])
  if type(id) == 'table' and id.err and not string.find(id.err, 'equal or smaller', 1, true) then return id end
  at = at + 3
end
if at <= #ARGV then
  redis.call('set', KEYS[1], ARGV[at])
  for i = at + 1, #ARGV, 2 do redis.call('hset', KEYS[3], ARGV[i], ARGV[i + 1]) end
  if redis.call('get', KEYS[4]) == ARGV[1] then redis.call('del', KEYS[4]) end
end
return 1
"""

# The lease may have run out while the question was looked at; if nobody else came, it is simply taken again.
_CREATE = """
local holder = redis.call('get', KEYS[2])
if redis.call('exists', KEYS[1]) == 0 or (holder and holder ~= ARGV[1]) then return 0 end
if redis.call('hlen', KEYS[3]) ~= tonumber(ARGV[2]) then return 0 end
redis.call('set', KEYS[2], ARGV[1], 'PX', ARGV[3])
redis.call('sadd', KEYS[4], ARGV[1])
redis.call('set', KEYS[5], ARGV[4])
redis.call('xadd', KEYS[6], ARGV[5] .. '-0', 'name', ARGV[6], 'data', ARGV[7])
return 1
"""


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
    events: tuple[LogEvent, ...]
    ending: Ending | None = None


class AnswerStore:
    """The answers of all tenants."""

    def __init__(self, redis: StoreClient) -> None:
        self._redis = redis
        self._log = EventLog(redis)

    async def create(
        self, tenant: str, record: AnswerRecord, *, opening: LogEvent, num_messages: int, lease_seconds: float
    ) -> bool:
        """Keep a new answer, with the first event of its log, and make sure of the session's lease.

        False when the session was erased or has gone on meanwhile: another answer holds its lease, or its history has
        no longer `num_messages` messages.
        """
        names = (
            keys.session(tenant, record.session_id),
            keys.session_lease(tenant, record.session_id),
            keys.messages(tenant, record.session_id),
            keys.session_answers(tenant, record.session_id),
            keys.answer(tenant, record.id),
            keys.answer_events(tenant, record.id),
        )
        arguments = (
            record.id,
            num_messages,
            int(lease_seconds * 1000),
            record.model_dump_json(),
            opening.number,
            opening.name,
            orjson.dumps(opening.data),
        )
        return bool(await self._redis.eval(_CREATE, len(names), *names, *arguments))

    async def get(self, tenant: str, answer_id: str) -> AnswerRecord | None:
        """The record, if there is one."""
        document = await self._redis.get(keys.answer(tenant, answer_id))
        return AnswerRecord.model_validate_json(document) if document else None

    async def write(self, writes: Sequence[AnswerWrite]) -> list[bool]:
        """Append the events of many answers in one round trip; false for those that were erased or ended meanwhile.

        May be repeated after an error: event numbers and message numbers are the writer's.
        """
        async with self._redis.pipeline(transaction=False) as pipeline:
            for write in writes:
                names = (
                    keys.answer(write.tenant, write.answer_id),
                    keys.answer_events(write.tenant, write.answer_id),
                    keys.messages(write.tenant, write.session_id),
                    keys.session_lease(write.tenant, write.session_id),
                )
                pipeline.eval(_WRITE, len(names), *names, *_arguments(write))
            return [bool(is_there) for is_there in await pipeline.execute()]

    async def read(self, tenant: str, answer_id: str, *, after: int, block: float) -> list[LogEvent]:
        """Events with a number greater than `after`; waits up to `block` seconds for the first of them."""
        return await self._log.read(keys.answer_events(tenant, answer_id), after=after, block=block)

    async def last_number(self, tenant: str, answer_id: str) -> int:
        """The number of the newest event of the answer's log; 0 if it is empty."""
        last = await self._log.last(keys.answer_events(tenant, answer_id))
        return 0 if last is None else last.number

    async def ask_to_cancel(self, tenant: str, answer_id: str) -> None:
        """Leave word for whichever replica owns the answer that it shall stop."""
        await self._redis.set(keys.answer_cancel(tenant, answer_id), b"1", ex=_CANCEL_TTL)

    async def is_cancelled(self, tenant: str, answer_id: str) -> bool:
        """Whether somebody left word that the answer shall stop."""
        return bool(await self._redis.exists(keys.answer_cancel(tenant, answer_id)))

    async def mark_read(self, tenant: str, answer_id: str) -> None:
        """Leave word for the answer's owner that somebody follows it at another replica."""
        await self._redis.set(keys.answer_reader(tenant, answer_id), b"1", ex=_READER_TTL)

    async def was_read(self, tenant: str, answer_id: str) -> bool:
        """Whether somebody followed the answer at another replica a moment ago."""
        return bool(await self._redis.exists(keys.answer_reader(tenant, answer_id)))


def _arguments(write: AnswerWrite) -> list[str | bytes | int]:
    arguments: list[str | bytes | int] = [write.answer_id, len(write.events)]
    for event in write.events:
        arguments += [event.number, event.name, orjson.dumps(event.data)]
    if write.ending is not None:
        arguments.append(write.ending.record.model_dump_json())
        for number, message in enumerate(write.ending.turn, start=write.ending.number):
            arguments += [number, message.model_dump_json()]
    return arguments
