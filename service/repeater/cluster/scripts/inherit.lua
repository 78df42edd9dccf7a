-- Has a node tell what another one had to tell, or says what a node has to tell.
--
-- KEYS: what the other had to tell, what this one has to tell; or the same key twice.
-- ARGV: milliseconds for which it is kept, the most events.
-- Answers the events with their numbers.

local found = redis.pcall('ZRANGE', KEYS[1], 0, tonumber(ARGV[2]) - 1, 'WITHSCORES')
if found['err'] then
  redis.call('UNLINK', KEYS[1])
  return {}
end
if KEYS[1] == KEYS[2] then return found end
for n = 1, #found, 2 do
  redis.call('ZADD', KEYS[2], found[n + 1], found[n])
  redis.call('ZREM', KEYS[1], found[n])
end
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return found
