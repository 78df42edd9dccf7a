-- Takes a place of a user, if the user has fewer than the limit on all nodes together.
--
-- KEYS: the counts of this node (hash: user -> connections; under the empty name all together), then
--   those of all other nodes.
-- ARGV: the user, the limit, ms for which this node's counts are kept.

local found = redis.call('TYPE', KEYS[1]).ok
if found ~= 'hash' and found ~= 'none' then redis.call('UNLINK', KEYS[1]) end

local held = 0
for _, counts in ipairs(KEYS) do
  local count = redis.pcall('HGET', counts, ARGV[1])
  held = held + (type(count) == 'string' and tonumber(count) or 0)
end
if held >= tonumber(ARGV[2]) then return 0 end
redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
redis.call('HINCRBY', KEYS[1], '', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
