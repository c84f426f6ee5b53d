"""Video records, their progress events, and the storage that each tenant's videos use."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from service.store import keys
from service.store.connection import StoreClient, text
from service.store.event_log import EventLog, LogEvent
from service.store.listing import Order, Page, list_page
from service.store.log_follower import FollowedLog, LogFollower
from service.store.records import VideoRecord

_EVENTS_TTL = 24 * 3600
_REMEMBER = """
if redis.call('exists', KEYS[1]) == 0 then return 0 end
redis.call('sadd', KEYS[2], ARGV[1])
return 1
"""
# Updates the total of stored bytes together with the record, so that both always agree.
_CREATE = """
if not redis.call('set', KEYS[1], ARGV[1], 'NX') then return 0 end
redis.call('zadd', KEYS[2], ARGV[2], ARGV[3])
redis.call('incrby', KEYS[3], ARGV[4])
redis.call('hdel', KEYS[4], ARGV[5])
return 1
"""
# Adds up the stored bytes and the other reservations, deletes those that have expired, and reserves the bytes if the
# limit allows it.
_RESERVE = """
local now, ends = tonumber(redis.call('time')[1]), 0
local sum = tonumber(redis.call('get', KEYS[1]) or 0) + tonumber(ARGV[2])
local entries = redis.call('hgetall', KEYS[2])
for i = 1, #entries, 2 do
  local bytes, till = string.match(entries[i + 1], '^(%d+) (%d+)$')
  if tonumber(till) <= now then redis.call('hdel', KEYS[2], entries[i])
  elseif entries[i] ~= ARGV[1] then sum, ends = sum + tonumber(bytes), math.max(ends, tonumber(till)) end
end
if sum > tonumber(ARGV[3]) then return 0 end
local till = now + tonumber(ARGV[4])
redis.call('hset', KEYS[2], ARGV[1], ARGV[2] .. ' ' .. string.format('%.0f', till))
redis.call('expireat', KEYS[2], string.format('%.0f', math.max(ends, till)))
return 1
"""
_PROLONG = """
local entry = redis.call('hget', KEYS[1], ARGV[1])
if not entry then return 0 end
local till = string.format('%.0f', tonumber(redis.call('time')[1]) + tonumber(ARGV[2]))
redis.call('hset', KEYS[1], ARGV[1], string.match(entry, '^%d+') .. ' ' .. till)
if tonumber(ARGV[2]) > redis.call('ttl', KEYS[1]) then redis.call('expireat', KEYS[1], till) end
return 1
"""
_ERASE = """
local record = redis.call('get', KEYS[1])
if record and redis.call('decrby', KEYS[3], string.format('%.0f', cjson.decode(record)['bytes'])) <= 0 then
  redis.call('del', KEYS[3])
end
redis.call('zrem', KEYS[2], ARGV[1])
redis.call('del', KEYS[1], unpack(KEYS, 4))
return record and 1 or 0
"""


class VideoStore:
    """The videos of all tenants."""

    def __init__(self, redis: StoreClient, follower: LogFollower) -> None:
        self._redis = redis
        self._follower = follower
        self._log = EventLog(redis, ttl=_EVENTS_TTL)

    async def create(self, tenant: str, record: VideoRecord, *, reservation: str = "") -> bool:
        """Store a new record and end the reservation of its bytes; false if the video already exists."""
        names = (
            keys.video(tenant, record.id),
            keys.videos(tenant),
            keys.stored_bytes(tenant),
            keys.reserved_bytes(tenant),
        )
        values = record.model_dump_json(), record.created_at, record.id, record.bytes, reservation
        return bool(await self._redis.eval(_CREATE, len(names), *names, *values))

    async def stored_bytes(self, tenant: str) -> int:
        """Total size of the video files, in bytes."""
        return int(await self._redis.get(keys.stored_bytes(tenant)) or 0)

    async def reserve(self, tenant: str, name: str, num_bytes: int, *, limit: int, seconds: int) -> bool:
        """Reserve bytes for `seconds`, replacing a reservation of this name; false if they would exceed `limit`."""
        names = keys.stored_bytes(tenant), keys.reserved_bytes(tenant)
        return bool(await self._redis.eval(_RESERVE, len(names), *names, name, num_bytes, limit, seconds))

    async def prolong(self, tenant: str, name: str, *, seconds: int) -> bool:
        """Let a reservation last for `seconds` from now; false if it has ended."""
        return bool(await self._redis.eval(_PROLONG, 1, keys.reserved_bytes(tenant), name, seconds))

    async def release(self, tenant: str, name: str) -> None:
        """End a reservation, if it exists."""
        await self._redis.hdel(keys.reserved_bytes(tenant), name)

    async def get(self, tenant: str, video_id: str) -> VideoRecord | None:
        """The record, if there is one."""
        document = await self._redis.get(keys.video(tenant, video_id))
        return VideoRecord.model_validate_json(document) if document else None

    async def get_many(self, tenant: str, video_ids: Sequence[str]) -> list[VideoRecord]:
        """The records of those ids that exist, in the given order."""
        if not video_ids:
            return []
        documents = await self._redis.mget([keys.video(tenant, video_id) for video_id in video_ids])
        return [VideoRecord.model_validate_json(document) for document in documents if document]

    async def update(self, tenant: str, record: VideoRecord) -> bool:
        """Replace the record; false, without a change, if the video was erased."""
        return bool(await self._redis.set(keys.video(tenant, record.id), record.model_dump_json(), xx=True))

    async def page(self, tenant: str, *, limit: int, after: str | None, order: Order = "desc") -> Page:
        """One page of video ids, by time of creation."""
        return await list_page(self._redis, keys.videos(tenant), limit=limit, after=after, order=order)

    async def session_ids(self, tenant: str, video_id: str) -> list[str]:
        """The ids of the sessions about a video."""
        members = await self._redis.smembers(keys.video_sessions(tenant, video_id))
        return sorted(text(member) for member in members)

    async def remember_features(self, tenant: str, video_id: str, features_key: str) -> bool:
        """Record a feature key, so that its features are erased with the video; false if the video was erased."""
        names = keys.video(tenant, video_id), keys.video_features(tenant, video_id)
        return bool(await self._redis.eval(_REMEMBER, len(names), *names, features_key))

    async def features_keys(self, tenant: str, video_id: str) -> list[str]:
        """The keys under which a video's features were cached."""
        members = await self._redis.smembers(keys.video_features(tenant, video_id))
        return sorted(text(member) for member in members)

    async def erase(self, tenant: str, video_id: str) -> bool:
        """Erase the record and its progress, but not its cached features; false if there was no record."""
        names = (
            keys.video(tenant, video_id),
            keys.videos(tenant),
            keys.stored_bytes(tenant),
            keys.video_events(tenant, video_id),
            keys.video_sessions(tenant, video_id),
            keys.video_features(tenant, video_id),
        )
        return bool(await self._redis.eval(_ERASE, len(names), *names, video_id))

    def follow(self, tenant: str, video_id: str, *, after: int) -> AbstractAsyncContextManager[FollowedLog]:
        """Follow a video's progress from the first event with a number greater than `after`."""
        return self._follower.follow(keys.video_events(tenant, video_id), after=after)

    async def last_progress(self, tenant: str, video_id: str) -> LogEvent | None:
        """The newest progress event of a video; None if there is none."""
        return await self._log.last(keys.video_events(tenant, video_id))

    async def restart_progress(self, tenant: str, video_id: str) -> None:
        """Delete the progress events, before the video is prepared again."""
        await self._redis.delete(keys.video_events(tenant, video_id))

    async def progress(self, tenant: str, video_id: str, event: LogEvent) -> None:
        """Append a progress event, unless the video was erased."""
        record = keys.video(tenant, video_id)
        await self._log.append(keys.video_events(tenant, video_id), event, record=record)
