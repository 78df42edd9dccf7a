-- Forgets denials that have expired, unless they were changed since.
--
-- KEYS: the denials (hash). ARGV: names and values.
-- Answers the names of those that have not expired by the clock of this server, and stay: a node's
-- clock may be ahead.

local now, early = tonumber(redis.call('TIME')[1]), {}
for n = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[n]) == ARGV[n + 1] then
    if tonumber(string.match(ARGV[n + 1], '%d+$')) <= now then
      redis.call('HDEL', KEYS[1], ARGV[n])
    else
      early[#early + 1] = ARGV[n]
    end
  end
end
return early
