-- Ends a node's membership, and tells the others.
--
-- KEYS: the nodes, their rows, the version of the list.
-- ARGV: the node's id, PUBLISH or SPUBLISH, the channel for news.
--
-- A server that is full refuses the first write and allows removals: so the version comes first.

if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local version = math.max((tonumber(redis.call('GET', KEYS[3]) or '') or 0) + 1, now)
local text = string.format('%.0f', version)
redis.call('SET', KEYS[3], text)
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call(ARGV[2], ARGV[3], text .. ' ' .. ARGV[1])
return 1
