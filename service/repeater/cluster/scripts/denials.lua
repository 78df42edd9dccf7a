-- Reads all denials, if they are not of the version that is known.
--
-- KEYS: the denials (hash), their version (hash: n the number of the last change, t its mark,
--   #<number> the marks of the last 1,000).
-- ARGV: the number and the mark that are known, then those of changes that wait for others.
-- Answers the number, the mark, 1 if the known change is among those that were made, the marks of
-- waiting changes that are not, and names and values; these are missing if the version is known.

for n = 1, 2 do
  local found = redis.call('TYPE', KEYS[n]).ok
  if found ~= 'hash' and found ~= 'none' then redis.call('UNLINK', KEYS[n]) end
end

local mark = redis.call('HGET', KEYS[2], 't') or ''
local number = tonumber(redis.call('HGET', KEYS[2], 'n') or '') or 0
local lost = {}
for n = 3, #ARGV, 2 do
  if redis.call('HGET', KEYS[2], '#' .. ARGV[n]) ~= ARGV[n + 1] then lost[#lost + 1] = ARGV[n + 1] end
end
if number == tonumber(ARGV[1]) and mark == ARGV[2] then return {number, mark, 1, lost} end
local known = ARGV[1] == '0' or redis.call('HGET', KEYS[2], '#' .. ARGV[1]) == ARGV[2]
return {number, mark, known and 1 or 0, lost, redis.call('HGETALL', KEYS[1])}
