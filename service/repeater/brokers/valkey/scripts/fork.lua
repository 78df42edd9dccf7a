-- Gives a stream another epoch, unless it has one already: publications of its epoch were lost.
--
-- KEYS: meta, stream.
-- ARGV: PUBLISH or SPUBLISH, the channel on the bus, the epoch that was found, the next one (with a
--   "!" before it, it is for this primary alone, as in publish.lua).

local fresh = ARGV[4]
if string.sub(fresh, 1, 1) == '!' then
  local about = redis.call('INFO', 'replication')
  local id = string.match(about, 'master_replid:(%x%x%x%x%x%x%x%x)')
  fresh = string.sub(fresh, 2) .. '-' .. id
end
if redis.call('HGET', KEYS[1], 'e') ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 'e', fresh)
redis.call('UNLINK', KEYS[2])
redis.call(ARGV[1], ARGV[2], (redis.call('HGET', KEYS[1], 'o') or '0') .. ' ' .. fresh .. ' 0\n')
return 1
