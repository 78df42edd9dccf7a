-- Reads a stream: epoch, top, uid of the top, and entries, all of one moment.
--
-- KEYS: meta, stream.
-- ARGV: the first and the last offset wanted (empty: from the beginning, to the end),
--   the most entries (0: none), 1 for the newest first,
--   the epoch of a channel without a stream, and milliseconds for which that is remembered.
--
-- A channel without a stream gets an epoch, which its first publication keeps.

local known = redis.pcall('HMGET', KEYS[1], 'e', 'o', 'u')
local epoch = known[1]
if not epoch then
  redis.call('UNLINK', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'e', ARGV[5])
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
  return {ARGV[5], '0', '', {}}
end
local first, last = ARGV[1], ARGV[2]
if first == '' then first = '-' end
if last == '' then last = '+' end
local found = {}
if ARGV[3] ~= '0' then
  if ARGV[4] == '1' then
    found = redis.pcall('XREVRANGE', KEYS[2], last, first, 'COUNT', ARGV[3])
  else
    found = redis.pcall('XRANGE', KEYS[2], first, last, 'COUNT', ARGV[3])
  end
  if found.err then found = {} end
end
return {epoch, known[2] or '0', known[3] or '', found}
