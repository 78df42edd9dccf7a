-- Reads a stream: epoch, top, uid of the top, and entries, all of one moment.
--
-- KEYS: meta, stream.
-- ARGV: the first and the last offset wanted (empty: from the beginning, to the end),
--   the most entries (0: none; -1: all), 1 for the newest first, the most bytes, about (0: any),
--   the epoch that the entries must be of (empty: any),
--   the epoch of a channel without a stream (empty: it gets none, and nothing is written; with a
--   "!" before it, it is also for a stream that another primary has numbered, as in publish.lua),
--   and milliseconds for which that is remembered.
--
-- A channel without a stream gets an epoch, which its first publication keeps.

local try = redis.pcall
local wanted, fresh = ARGV[6], ARGV[7]
local known = try('HMGET', KEYS[1], 'e', 'o', 'u')
if known.err and (fresh == '' or not string.find(known.err, 'WRONGTYPE', 1, true)) then
  return known
end
local epoch, top, uid = known[1], known[2] or '0', known[3] or ''
if fresh ~= '' then
  local mark = ''
  if string.sub(fresh, 1, 1) == '!' then
    local about = redis.call('INFO', 'replication')
    mark = '-' .. string.match(about, 'master_replid:(%x%x%x%x%x%x%x%x)')
    fresh = string.sub(fresh, 2) .. mark
  end
  if epoch and mark ~= '' and string.sub(epoch, -#mark) ~= mark then epoch = false end
  if epoch and not (#epoch <= 32 and string.find(epoch, '^[%w_-]+$')
      and #top <= 15 and string.find(top, '^%d+$')) then
    epoch = false
  end
  if not epoch then
    epoch, top, uid = fresh, '0', ''
    redis.call('UNLINK', KEYS[1], KEYS[2])
    redis.call('HSET', KEYS[1], 'e', epoch)
  end
  if top == '0' then redis.call('PEXPIRE', KEYS[1], ARGV[8]) end
elseif not epoch then
  return {'', '0', '', {}}
end

local first, last = ARGV[1], ARGV[2]
if first == '' then first = '-' end
if last == '' then last = '+' end
local count, bytes = tonumber(ARGV[3]), tonumber(ARGV[5])
if wanted ~= '' and wanted ~= epoch then count = 0 end

local function range(most)
  if ARGV[4] == '1' then
    if most < 0 then return try('XREVRANGE', KEYS[2], last, first) end
    return try('XREVRANGE', KEYS[2], last, first, 'COUNT', most)
  end
  if most < 0 then return try('XRANGE', KEYS[2], first, last) end
  return try('XRANGE', KEYS[2], first, last, 'COUNT', most)
end

if count == 0 then return {epoch, top, uid, {}} end
if bytes == 0 then
  local found = range(count)
  if found.err then
    if fresh == '' then return found end
    found = {}
  end
  return {epoch, top, uid, found}
end

-- Few at a time, so that a stream of large publications is not taken into memory at once.
local entries = {}
while count > 0 and bytes > 0 do
  local found = range(math.min(count, 32))
  if found.err then return found end
  for _, entry in ipairs(found) do
    entries[#entries + 1] = entry
    for _, part in ipairs(entry[2]) do bytes = bytes - #part end
  end
  if #found < 32 then break end
  count = count - #found
  first = '(' .. found[#found][1]
end
return {epoch, top, uid, entries}
