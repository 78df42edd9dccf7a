-- Keeps the epoch of a channel without a stream a while longer.
--
-- KEYS: meta.
-- ARGV: milliseconds.
--
-- A stream that has begun meanwhile is kept as its publications say.

if (redis.call('HGET', KEYS[1], 'o') or '0') == '0' then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return 0
