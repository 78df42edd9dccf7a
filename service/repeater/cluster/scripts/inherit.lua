-- Has a node tell what another one had to tell, or says what a node has to tell.
--
-- KEYS: what the other had to tell, what this one has to tell; or the same key twice.
-- ARGV: milliseconds for which it is kept, the most events.
-- Answers the events with their numbers. What no node has written is taken out.

local found = redis.pcall('ZRANGE', KEYS[1], 0, tonumber(ARGV[2]) - 1, 'WITHSCORES')
if found['err'] then
  redis.call('UNLINK', KEYS[1])
  return {}
end
local events = {}
for n = 1, #found, 2 do
  local event, number = found[n], found[n + 1]
  local is_ours = string.find(event, '^[ov]') and string.find(number, '^%d+$')
  if not is_ours or KEYS[1] ~= KEYS[2] then redis.call('ZREM', KEYS[1], event) end
  if is_ours then
    if KEYS[1] ~= KEYS[2] then redis.call('ZADD', KEYS[2], number, event) end
    events[#events + 1] = event
    events[#events + 1] = number
  end
end
if KEYS[1] ~= KEYS[2] then redis.call('PEXPIRE', KEYS[2], ARGV[1]) end
return events
