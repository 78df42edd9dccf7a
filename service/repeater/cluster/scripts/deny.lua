-- Keeps one denial, or lifts it, and numbers the change.
--
-- KEYS: the denials (hash), their version (hash: n the number of the last change, t its mark,
--   #<number> the marks of the last 1,000).
-- ARGV: the denial's name, its value (empty: it is lifted), a random mark,
--   1 if it was lost and is written anew: then what is there already and is wider stays.
-- Answers the number, the mark of the change before it, and the value that is kept now.
--
-- A value is "<issued before> <expires at>" in Unix seconds, 0 for none. Of two revocations of a
-- user's tokens the wider one is kept: no token that was revoked becomes valid again.

for n = 1, 2 do
  local found = redis.call('TYPE', KEYS[n]).ok
  if found ~= 'hash' and found ~= 'none' then redis.call('UNLINK', KEYS[n]) end
end

local name, value = ARGV[1], ARGV[2]

local function wider(old, new)
  local old_before, old_end = string.match(old, '^(%d+) (%d+)$')
  local before, last = string.match(new, '^(%d+) (%d+)$')
  local now = tonumber(redis.call('TIME')[1])
  if not old_before or not before then return new end
  if #old_before > 18 or #old_end > 18 then return new end -- No node has written it.
  if before == '0' and ARGV[4] ~= '1' then return new end
  if old_end ~= '0' and tonumber(old_end) <= now then return new end
  if tonumber(old_before) > tonumber(before) then before = old_before end
  if last ~= '0' and (old_end == '0' or tonumber(old_end) > tonumber(last)) then last = old_end end
  return before .. ' ' .. last
end

-- A server that is full refuses the first write and allows removals: so the version comes first.
local before = redis.call('HGET', KEYS[2], 't') or ''
local number = (tonumber(redis.call('HGET', KEYS[2], 'n') or '') or 0) + 1
redis.call('HSET', KEYS[2], 'n', number, 't', ARGV[3], '#' .. number, ARGV[3])
redis.call('HDEL', KEYS[2], '#' .. (number - 1000))
if value == '' then
  redis.call('HDEL', KEYS[1], name)
else
  value = wider(redis.call('HGET', KEYS[1], name) or '', value)
  redis.call('HSET', KEYS[1], name, value)
end
return {number, before, value}
