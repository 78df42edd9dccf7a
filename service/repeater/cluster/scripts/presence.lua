-- Changes what one node has in one channel's presence, and keeps it alive.
--
-- KEYS: the nodes of the channel, the infos of this node's clients, their users.
-- ARGV: the node, milliseconds to live,
--   the number of the change before this one (empty: nothing counts that was before), this number,
--   how many clients have an info, then each client with its info; how many have left, then those;
--   how many users are there, then those; then users of whom nobody is there.
-- Answers the numbers of clients and users; 0 if the change before is not the last one, and nothing
-- has happened then.
--
-- The number is among the infos, under the empty name. A key of another type is not ours: it goes.

local nodes, infos, users = KEYS[1], KEYS[2], KEYS[3]
local node, lifetime, before, number = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local function is_ours(key, kind)
  local found = redis.call('TYPE', key)['ok']
  return found == kind or found == 'none'
end

if not is_ours(nodes, 'zset') then redis.call('UNLINK', nodes) end
local known = false
if is_ours(infos, 'hash') then known = redis.call('HGET', infos, '') end
if before == '' then
  if known and (tonumber(known) or 0) >= tonumber(number) then return 0 end
  redis.call('UNLINK', infos, users)
elseif known ~= before or not is_ours(users, 'set') then
  return 0
end

local at = 5
local function next_argument()
  at = at + 1
  return ARGV[at - 1]
end

for _ = 1, tonumber(next_argument()) do
  local client = next_argument()
  redis.call('HSET', infos, client, next_argument())
end
for _ = 1, tonumber(next_argument()) do redis.call('HDEL', infos, next_argument()) end
for _ = 1, tonumber(next_argument()) do redis.call('SADD', users, next_argument()) end
while at <= #ARGV do redis.call('SREM', users, next_argument()) end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', infos, '', number)
local clients = redis.call('HLEN', infos) - 1
if clients == 0 then
  redis.call('UNLINK', infos, users)
  redis.call('ZREM', nodes, node)
  return {0, 0}
end
redis.call('PEXPIRE', infos, lifetime)
redis.call('PEXPIRE', users, lifetime)
redis.call('ZREMRANGEBYSCORE', nodes, '-inf', '(' .. string.format('%.0f', now))
redis.call('ZADD', nodes, string.format('%.0f', now + lifetime), node)
redis.call('PEXPIRE', nodes, lifetime)
return {clients, redis.call('SCARD', users)}
