-- Keeps a node's counts; answers how many users they have. KEYS: the counts. ARGV: ms.

redis.call('PEXPIRE', KEYS[1], ARGV[1])
local found = redis.pcall('HLEN', KEYS[1])
return type(found) == 'number' and found or -1
