-- The nodes that have clients in a channel now.
--
-- KEYS: the nodes of the channel.
-- ARGV: the most nodes.

local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local found = redis.pcall('ZRANGEBYSCORE', KEYS[1], now, '+inf', 'LIMIT', 0, ARGV[1])
if found['err'] then return {} end
return found
