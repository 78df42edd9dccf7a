-- Carries out instructions in order: numbers, keeps and hands on publications.
--
-- ARGV: PUBLISH or SPUBLISH; the epoch of streams that begin here; then instructions, each a
--   letter and what belongs to it. KEYS: what the instructions take, in the same order.
--   With a "!" before the epoch, a stream that another primary has numbered begins anew: epochs
--   end with eight digits of their primary's replication id.
--
--   o  most publications kept, milliseconds until they are forgotten, and until the stream is:
--      for all that follow
--   v  version as 20 digits, its epoch: of the next publication
--   i  milliseconds for which a result is remembered; key result: of the next publication
--   t  term, name, name of the row before it or nothing; key rows: the next publication is a row of
--      another database, which is published once, by nobody with a lower term than another one had
--   k  channel, envelope; keys meta, stream: number, keep and hand on
--   n  channel, envelope; key meta: hand on; the channel keeps no history (any more)
--   h  channel, envelope; key meta: hand on only
--   r  keys meta, stream: forget the publications, not the numbers
--   f  how many, and their names; key rows: forget rows
--
-- Answers one text for each of k, n, h, r and f: "offset epoch", with " !" behind it if a key was not
-- ours and the stream had to begin anew; empty without a number; or the error of the engine. Of a
-- row that must not be published: "!" and the term that leads, or "!" if the one before it is not.

local call, try, find = redis.call, redis.pcall, string.find
local verb, base, mark = ARGV[1], ARGV[2], ''
if string.sub(base, 1, 1) == '!' then
  base = string.sub(base, 2)
  mark = '-' .. string.match(call('INFO', 'replication'), 'master_replid:(%x%x%x%x%x%x%x%x)')
end
local fresh = base .. mark
local time = call('TIME')
local now = time[1] .. string.sub('00000' .. time[2], -6, -4)
local size, ttl, lasting
local version, version_epoch, result, remembered
local rows, term, row, after
local begun = 0

-- What begins twice in one script must not get the same epoch twice.
local function renew()
  begun = begun + 1
  fresh = base .. '-' .. begun .. mark
end

local function is_ours(epoch, top)
  return #epoch <= 32 and find(epoch, '^[%w_-]+$') and #top <= 15 and find(top, '^%d+$')
end

local function keep(meta, stream, channel, envelope)
  local known
  if version then
    known = try('HMGET', meta, 'e', 'o', 'v', 'w')
  else
    known = try('HMGET', meta, 'e', 'o')
  end
  local failure, foreign = known.err, ''
  if failure and not find(failure, 'WRONGTYPE', 1, true) then return known end
  local epoch, top = known[1], known[2] or '0'
  if failure or (epoch and not is_ours(epoch, top)) then
    foreign = ' !'
    call('UNLINK', meta)
    epoch = false
  end
  if epoch and mark ~= '' and string.sub(epoch, -#mark) ~= mark then
    call('UNLINK', meta)
    epoch = false
  end
  if not epoch then
    epoch, top = fresh, '0'
    call('UNLINK', stream)
  elseif version and known[3] and known[4] == version_epoch and known[3] >= version then
    return top .. ' ' .. epoch
  end
  local offset = string.format('%d', top + 1)
  local added = try('XADD', stream, 'MAXLEN', size, offset .. '-' .. now, 'd', envelope)
  if type(added) == 'table' then
    failure = added.err
    if not find(failure, 'WRONGTYPE', 1, true) and not find(failure, 'The ID', 1, true) then
      return added
    end
    renew()
    epoch, offset, foreign = fresh, '1', ' !'
    call('UNLINK', meta, stream)
    call('XADD', stream, 'MAXLEN', size, '1-' .. now, 'd', envelope)
  end
  local uid = string.sub(envelope, 1, 8)
  if version then
    call('HSET', meta, 'e', epoch, 'o', offset, 'u', uid, 'v', version, 'w', version_epoch)
  else
    call('HSET', meta, 'e', epoch, 'o', offset, 'u', uid)
  end
  call('PEXPIRE', stream, ttl)
  call('PEXPIRE', meta, lasting)
  local place = offset .. ' ' .. epoch
  local sent = try(verb, channel, place .. ' ' .. now .. '\n' .. envelope)
  if type(sent) == 'table' then return sent end
  return place .. foreign
end

local function hand_on(channel, envelope)
  local sent = try(verb, channel, '0\n' .. envelope)
  if type(sent) == 'table' then return sent end
  return ''
end

local function is_outcome(text)
  local offset, epoch = string.match(text, '^(%d+) ([%w_-]+)$')
  return text == '' or (offset and is_ours(epoch, offset))
end

local function known_result()
  local known = try('GET', result)
  if type(known) == 'string' and is_outcome(known) then return known end
  return nil
end

-- What a row of before says: its result, or why it must not be published; nothing if it must.
local function known_row()
  local known = try('HMGET', rows, '', row, after)
  if known.err then
    if not find(known.err, 'WRONGTYPE', 1, true) then return known end
    call('UNLINK', rows)
    known = {}
  end
  local seen = known[1]
  if not (seen and #seen <= 16 and find(seen, '^%d+$')) then seen = '0' end
  if tonumber(seen) > tonumber(term) then return '!' .. seen end
  local outcome = known[2]
  if outcome then
    if seen ~= term then call('HSET', rows, '', term) end
    return is_outcome(outcome) and outcome or ''
  end
  local missing = after ~= '' and not known[3]
  -- Before it is published, so that what refuses to write (full, no primary) publishes nothing.
  local kept
  if missing then
    if seen ~= term then kept = try('HSET', rows, '', term) end
  else
    kept = try('HSET', rows, '', term, row, '')
  end
  if type(kept) == 'table' then return kept end
  return missing and '!' or nil
end

local function keep_row(answer)
  if type(answer) ~= 'string' then
    try('HDEL', rows, row)
  elseif answer ~= '' then
    try('HSET', rows, row, (string.gsub(answer, ' !$', '')))
  end
end

local function forget_rows(first, last)
  for number = first, last do
    local gone = try('HDEL', rows, ARGV[number])
    if type(gone) == 'table' then
      if find(gone.err, 'WRONGTYPE', 1, true) then return '' end
      return gone
    end
  end
  return ''
end

local answers, key, at, last = {}, 0, 3, #ARGV
while at <= last do
  local what = ARGV[at]
  if what == 'o' then
    size, ttl, lasting = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    at = at + 4
  elseif what == 'v' then
    version, version_epoch = ARGV[at + 1], ARGV[at + 2]
    at = at + 3
  elseif what == 'i' then
    key = key + 1
    result, remembered = KEYS[key], ARGV[at + 1]
    at = at + 2
  elseif what == 't' then
    key = key + 1
    rows, term, row, after = KEYS[key], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    at = at + 4
  elseif what == 'f' then
    key = key + 1
    rows = KEYS[key]
    local many = tonumber(ARGV[at + 1])
    local answer = forget_rows(at + 2, at + 1 + many)
    if type(answer) == 'table' and #answers == 0 then return answer end
    answers[#answers + 1] = answer
    rows = nil
    at = at + 2 + many
  elseif what == 'r' then
    try('UNLINK', KEYS[key + 2])
    answers[#answers + 1] = ''
    key = key + 2
    at = at + 1
  else
    local channel, envelope = ARGV[at + 1], ARGV[at + 2]
    local answer = rows and known_row()
    local is_known = answer
    if not answer then answer = result and known_result() end
    if answer then
      key = key + (what == 'k' and 2 or 1)
    else
      if what == 'k' then
        answer = keep(KEYS[key + 1], KEYS[key + 2], channel, envelope)
        key = key + 2
      else
        if what == 'n' and call('UNLINK', KEYS[key + 1]) == 1 then renew() end
        answer = hand_on(channel, envelope)
        key = key + 1
      end
      if result and type(answer) == 'string' then
        try('SET', result, string.gsub(answer, ' !$', ''), 'PX', remembered)
      end
    end
    if rows and not is_known then keep_row(answer) end
    -- An engine that refuses the first (full, no primary, no rights) refuses all.
    if type(answer) == 'table' and #answers == 0 then return answer end
    answers[#answers + 1] = answer
    version, result, rows = nil, nil, nil
    at = at + 3
  end
end
return answers
