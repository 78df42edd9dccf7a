-- Publishes in order: numbers, keeps and hands on each publication, and remembers its result.
--
-- KEYS: of each publication its meta, its stream, and the place of its result.
-- ARGV: PUBLISH or SPUBLISH; then of each publication
--   its channel on the bus, its envelope, its uid,
--   the most publications kept (0: the channel keeps none; -1: this one is not kept),
--   milliseconds until its history is forgotten, and until its stream is,
--   the epoch of a new stream,
--   milliseconds for which the result is remembered (0: it is not),
--   its version as 20 digits (empty: none) and the version's epoch.
-- Answers "offset epoch" of each, empty for one without a number.
--
-- A key of another type is not ours: its stream begins anew.

local PARTS = 10
local verb = ARGV[1]
local time = redis.call('TIME')
local now = time[1] .. string.sub('00000' .. time[2], -6, -4)

local function begin(meta, stream, epoch)
  redis.call('UNLINK', meta, stream)
  redis.call('HSET', meta, 'e', epoch)
end

local function number(meta, stream, size, ttl, lasting, fresh, envelope, uid, version, version_epoch)
  local known = redis.pcall('HMGET', meta, 'e', 'o', 'v', 'w')
  local epoch = known[1]
  if not epoch then
    epoch = fresh
    begin(meta, stream, epoch)
  elseif version ~= '' and known[3] and known[4] == version_epoch and known[3] >= version then
    return (known[2] or '0') .. ' ' .. epoch, false
  end
  local offset = redis.call('HINCRBY', meta, 'o', 1)
  local added = redis.pcall('XADD', stream, 'MAXLEN', size, offset .. '-' .. now, 'd', envelope)
  if type(added) == 'table' then
    epoch, offset = fresh, 1
    begin(meta, stream, epoch)
    redis.call('HSET', meta, 'o', 1)
    redis.call('XADD', stream, 'MAXLEN', size, '1-' .. now, 'd', envelope)
  end
  if version == '' then
    redis.call('HSET', meta, 'u', uid)
  else
    redis.call('HSET', meta, 'u', uid, 'v', version, 'w', version_epoch)
  end
  redis.call('PEXPIRE', stream, ttl)
  redis.call('PEXPIRE', meta, lasting)
  return offset .. ' ' .. epoch, true
end

local answers = {}
for n = 1, #KEYS / 3 do
  local meta, stream, result = KEYS[3 * n - 2], KEYS[3 * n - 1], KEYS[3 * n]
  local at = 1 + PARTS * (n - 1)
  local channel, envelope, size, remembered = ARGV[at + 1], ARGV[at + 2], ARGV[at + 4], ARGV[at + 8]
  local answer = remembered ~= '0' and redis.pcall('GET', result)
  if type(answer) == 'table' then answer = false end
  if not answer then
    local place, new = '', true
    if size == '0' then
      redis.call('UNLINK', meta, stream)
    elseif size ~= '-1' then
      place, new = number(
        meta, stream, size, ARGV[at + 5], ARGV[at + 6], ARGV[at + 7],
        envelope, ARGV[at + 3], ARGV[at + 9], ARGV[at + 10]
      )
    end
    if new then
      local head = place == '' and '0' or place .. ' ' .. now
      redis.call(verb, channel, head .. '\n' .. envelope)
    end
    if remembered ~= '0' then redis.call('SET', result, place, 'PX', remembered) end
    answer = place
  end
  answers[n] = answer
end
return answers
