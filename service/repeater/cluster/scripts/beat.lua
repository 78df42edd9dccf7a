-- Keeps a node a member, takes out those that are lost, and answers who is there.
--
-- KEYS: the nodes (each until when, Unix ms), their rows, the lost ones (each when its duty is due),
--   the rows of these, the version of the list.
-- ARGV: the node's id and row, ms for which it is a member now, the version that it knows,
--   since when it has beaten without a gap and its last beat (Unix ms of this server; 0: none),
--   the most ms between two beats without a gap, ms for one try of a duty,
--   PUBLISH or SPUBLISH, the channel for news.
-- Answers the version, the time, 1 if the node was no member before or may not have been, 1 if there was no gap before
--   this beat, 1 if the node's own loss is not dealt with yet, the rows of all members (nothing if
--   the version is known), then id and row of each lost node whose duty is this one's now.
--
-- A node that had a gap itself judges nobody: the server may have been away for all of them. So may
-- a replica that took over without the last beats; it has not this node's last one either.

local kinds = {'zset', 'hash', 'zset', 'hash', 'string'}
for n, kind in ipairs(kinds) do
  local found = redis.call('TYPE', KEYS[n]).ok
  if found ~= kind and found ~= 'none' then redis.call('UNLINK', KEYS[n]) end
end

local nodes, rows, lost, lost_rows = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, row, stay = ARGV[1], ARGV[2], tonumber(ARGV[3])
local since, last, gap = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local version = tonumber(redis.call('GET', KEYS[5]) or '') or 0

local function whole(number) return string.format('%.0f', number) end

local function change()
  version = math.max(version + 1, now)
  redis.call('SET', KEYS[5], whole(version))
end

-- Times that are further ahead than any can be: the clock was set back.
local function not_above(key, most)
  for _, one in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. whole(most), '+inf')) do
    redis.call('ZADD', key, whole(most), one)
  end
end
not_above(nodes, now + stay)
not_above(lost, now + tonumber(ARGV[8]))

local until_when = redis.call('ZSCORE', nodes, id)
local is_new = not until_when
-- After so long it may have been lost, and made a member again by a beat whose answer was lost.
local may_be_new = until_when and last > 0 and now - last > stay
  and tonumber(until_when) ~= last + stay
local is_steady = until_when and now - last <= gap and tonumber(until_when) == last + stay
redis.call('ZADD', nodes, whole(now + stay), id)
if is_new or redis.call('HGET', rows, id) ~= row then
  redis.call('HSET', rows, id, row)
  change()
end

if is_steady and since > 0 and now - since >= stay then
  for _, one in ipairs(redis.call('ZRANGEBYSCORE', nodes, '-inf', '(' .. whole(now))) do
    redis.call('HSET', lost_rows, one, redis.call('HGET', rows, one) or '')
    redis.call('ZADD', lost, whole(now), one)
    redis.call('ZREM', nodes, one)
    redis.call('HDEL', rows, one)
    change()
    redis.call(ARGV[9], ARGV[10], whole(version) .. ' ' .. one)
  end
end

local due = {}
for _, one in ipairs(redis.call('ZRANGEBYSCORE', lost, '-inf', whole(now), 'LIMIT', 0, 16)) do
  redis.call('ZADD', lost, whole(now + tonumber(ARGV[8])), one)
  due[#due + 1] = one
  due[#due + 1] = redis.call('HGET', lost_rows, one) or ''
end

local list = false
if whole(version) ~= ARGV[4] then
  list = {}
  for _, one in ipairs(redis.call('ZRANGE', nodes, 0, -1)) do
    list[#list + 1] = redis.call('HGET', rows, one) or ''
  end
end
local waits = redis.call('ZSCORE', lost, id) and 1 or 0
return {version, now, (is_new or may_be_new) and 1 or 0, is_steady and 1 or 0, waits, list, due}
