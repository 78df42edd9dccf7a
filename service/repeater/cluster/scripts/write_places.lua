-- Writes counts of a node as they are.
--
-- KEYS: the counts of this node. ARGV: 1 if older ones are forgotten first, ms for which they are
-- kept, then users and counts.

if ARGV[1] == '1' then redis.call('UNLINK', KEYS[1]) end
for n = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[n], ARGV[n + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
