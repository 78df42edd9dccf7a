-- Reads all denials, if they are not of the version that is known.
--
-- KEYS: the denials (hash), their version (hash: e epoch, n the number of the last change).
-- ARGV: the epoch and the number that are known.
-- Answers the epoch, the number, and names and values; these are missing if the version is known.

for n = 1, 2 do
  local found = redis.call('TYPE', KEYS[n]).ok
  if found ~= 'hash' and found ~= 'none' then redis.call('UNLINK', KEYS[n]) end
end

local epoch = redis.call('HGET', KEYS[2], 'e') or ''
local number = tonumber(redis.call('HGET', KEYS[2], 'n') or '') or 0
if epoch == ARGV[1] and number == tonumber(ARGV[2]) then return {epoch, number} end
return {epoch, number, redis.call('HGETALL', KEYS[1])}
