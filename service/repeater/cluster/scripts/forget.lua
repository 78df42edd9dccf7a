-- Forgets denials that have expired, unless they were changed since.
--
-- KEYS: the denials (hash). ARGV: names and values.

local gone = 0
for n = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[n]) == ARGV[n + 1] then
    gone = gone + redis.call('HDEL', KEYS[1], ARGV[n])
  end
end
return gone
