-- Writes counts of a node as they are.
--
-- KEYS: the counts of this node (hash: user -> connections; under the empty name all together).
-- ARGV: 1 if older ones are forgotten first, ms for which they are kept, then users and counts.

if ARGV[1] == '1' then redis.call('UNLINK', KEYS[1]) end
local more = 0
for n = 3, #ARGV, 2 do
  more = more + ARGV[n + 1] - (redis.call('HGET', KEYS[1], ARGV[n]) or 0)
  redis.call('HSET', KEYS[1], ARGV[n], ARGV[n + 1])
end
if more ~= 0 then redis.call('HINCRBY', KEYS[1], '', more) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
