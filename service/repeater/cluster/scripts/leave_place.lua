-- Gives a place of a user back. KEYS: the counts of this node. ARGV: the user.

local held = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '') or 0
if held > 1 then
  redis.call('HINCRBY', KEYS[1], ARGV[1], -1)
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
if held > 0 and redis.call('HINCRBY', KEYS[1], '', -1) <= 0 then redis.call('HDEL', KEYS[1], '') end
return 1
