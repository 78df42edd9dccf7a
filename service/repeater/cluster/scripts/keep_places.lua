-- Keeps a node's counts; answers how many fields they have, and how many connections.
--
-- KEYS: the counts. ARGV: ms.

redis.call('PEXPIRE', KEYS[1], ARGV[1])
local fields = redis.pcall('HLEN', KEYS[1])
if type(fields) ~= 'number' then return {-1, -1} end
return {fields, tonumber(redis.call('HGET', KEYS[1], '') or '') or 0}
