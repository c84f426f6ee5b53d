"""The Lua scripts of answers. Each runs atomically, so that a paused or dead owner leaves no answer half written."""

CREATE = """
if redis.call('exists', KEYS[1]) == 0 then return 'gone' end
if redis.call('exists', KEYS[5]) == 1 then return 'duplicate' end
local running = redis.call('get', KEYS[2])
if running and running ~= ARGV[1] then return 'busy' end
if redis.call('hlen', KEYS[3]) ~= tonumber(ARGV[2]) then return 'changed' end
redis.call('set', KEYS[2], ARGV[1])
redis.call('sadd', KEYS[4], ARGV[1])
redis.call('set', KEYS[5], ARGV[4])
redis.call('xadd', KEYS[6], ARGV[5] .. '-0', 'name', ARGV[6], 'data', ARGV[7])
redis.call('hset', KEYS[7], 'token', ARGV[8])
if ARGV[10] ~= '' then redis.call('hset', KEYS[7], 'generator', ARGV[10]) end
redis.call('set', KEYS[8], ARGV[8], 'PX', ARGV[3])
redis.call('sadd', KEYS[9], ARGV[9])
return 'created'
"""
"""Creates an answer and makes its session busy. The session's lease has no time to live: it ends with the answer, also
while no replica owns the answer.

KEYS: session, session lease, messages, session's answers, answer, events, owner, owner's lease, running answers.
ARGV: answer id, messages in the history, lease in ms, record, number, name and data of the first event, owner's token,
member of the running answers, generator (empty if unknown). Returns a `CreateOutcome`.
"""

WRITE = """
if redis.call('exists', KEYS[1]) == 0 then return 0 end
local num_events = tonumber(ARGV[4])
local last = redis.call('xrevrange', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last and (last[2][2] == 'done' or last[2][2] == 'error') then
  return last[1] == (ARGV[4 * num_events + 1] or '') .. '-0' and 1 or 0
end
if redis.call('hget', KEYS[5], 'token') ~= ARGV[2] then return 0 end
local last_number = last and tonumber(string.match(last[1], '^%d+')) or 0
if num_events > 0 and tonumber(ARGV[5]) > last_number + 1 then return 3 end
local at, has_tokens = 5, false
for _ = 1, num_events do
  local entry = {KEYS[2], ARGV[at] .. '-0', 'name', ARGV[at + 1], 'data', ARGV[at + 2]}
  if ARGV[at + 3] ~= '' then
    has_tokens = true
    entry[7], entry[8] = 'tokens', ARGV[at + 3]
  end
  local id = redis.pcall('xadd', unpack(entry))
  if type(id) == 'table' and id.err and not string.find(id.err, 'equal or smaller', 1, true) then return id end
  at = at + 4
end
if has_tokens then redis.call('hdel', KEYS[5], 'barren') end
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
"""Appends events and, with the last of them, stores the final record and the turn and releases the session's lease.

Writes nothing if the answer was erased, has ended or has another owner. May be repeated: XADD refuses an event whose
number is in the log. Any other refusal of XADD (no memory) fails the script, and a gap between the log and the first
event returns 3, so that no event is ever missing silently.

KEYS: answer, events, messages, session lease, owner, owner's lease, cancel flag, running answers.
ARGV: answer id, owner's token, member of the running answers, number of events; for each event its number, name, data
and token ids; at the end the record, and number and record of each message. Returns an `OwnerVerdict`.
"""

TAKE = """
if redis.call('sismember', KEYS[4], ARGV[3]) == 0 then return 0 end
if redis.call('exists', KEYS[1]) == 0 then
  redis.call('srem', KEYS[4], ARGV[3])
  return 0
end
if redis.call('exists', KEYS[3]) == 1 then return 0 end
local barren = 0
if redis.call('hdel', KEYS[2], 'released') == 0 then barren = redis.call('hincrby', KEYS[2], 'barren', 1) end
redis.call('hset', KEYS[2], 'token', ARGV[1])
redis.call('hdel', KEYS[2], 'unserved')
if ARGV[4] ~= '' then redis.call('hsetnx', KEYS[2], 'generator', ARGV[4]) end
redis.call('set', KEYS[3], ARGV[1], 'PX', ARGV[2])
return barren + 1
"""
"""Gives an answer without an owner to a new one. The field `barren` counts owners that died without adding a token.

KEYS: answer, owner, owner's lease, running answers. ARGV: owner's token, lease in ms, member of the running answers,
generator (empty to leave it as it is); one that is recorded stays.
Returns 0 if the answer cannot be taken, else 1 + `barren`.
"""

WAIT = """
if redis.call('sismember', KEYS[4], ARGV[2]) == 0 or redis.call('exists', KEYS[1]) == 0 then return false end
if redis.call('exists', KEYS[3]) == 1 then return false end
redis.call('hsetnx', KEYS[2], 'unserved', ARGV[1])
return redis.call('hget', KEYS[2], 'unserved')
"""
"""Records since when an answer without an owner has been found without a replica that serves its model. The field
`unserved` is erased by the next owner.

KEYS: answer, owner, owner's lease, running answers. ARGV: now, member of the running answers.
Returns the time that is recorded; nil if the answer has an owner, has ended or was erased.
"""

RENEW = """
if redis.call('hget', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('set', KEYS[2], ARGV[1], 'PX', ARGV[2])
return redis.call('exists', KEYS[3]) == 1 and 2 or 1
"""
"""Extends an owner's lease. KEYS: owner, owner's lease, cancel flag. ARGV: owner's token, lease in ms.
Returns an `OwnerVerdict`."""

RELEASE = """
if redis.call('hget', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('hset', KEYS[1], 'released', 1)
redis.call('hdel', KEYS[1], 'token')
return redis.call('del', KEYS[2])
"""
"""Ends an owner's lease; the next owner does not count this as a death. KEYS: owner, owner's lease.
ARGV: owner's token."""

SET_FLAG = "if redis.call('exists', KEYS[1]) == 1 then redis.call('set', KEYS[2], 1, 'PX', ARGV[1]) end"
"""Sets a flag of an answer, unless the answer was erased. KEYS: answer, flag. ARGV: time to live in ms."""
