-- Gives a stream another epoch, unless it has one already: publications of its epoch were lost.
--
-- KEYS: meta, stream.
-- ARGV: PUBLISH or SPUBLISH, the channel on the bus, the epoch that was found, the next one.

if redis.call('HGET', KEYS[1], 'e') ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 'e', ARGV[4])
redis.call('UNLINK', KEYS[2])
redis.call(ARGV[1], ARGV[2], (redis.call('HGET', KEYS[1], 'o') or '0') .. ' ' .. ARGV[4] .. ' 0\n')
return 1
