-- Has channels held by a node, or by it no more, and says which change of a channel this one is.
--
-- KEYS: the channels that the node holds; what the teller has to tell; then the nodes of each channel.
-- ARGV: the node, milliseconds for which a hold counts, for which all of it is kept, and for which
--   the last number of a channel is kept that nobody holds;
--   how many events have been told, then each with its number;
--   then of each channel `o` (the node holds it), `v` (it does not) or `V` (it does not, but did) with
--   the channel's name, and the number of the last change that the teller has told.
-- Answers the event and the number of each channel's change, empty and 0 for none; then channels that
-- the node had once and has not mentioned for long.
--
-- The nodes of a channel have the Unix milliseconds until which their holds count. Under the empty
-- name is the number of the last change, in microseconds, far above. So all numbers of a channel grow,
-- also when the engine has forgotten the last one. What is to be told stays until it has been told.
--
-- An engine that has lost something may not know a hold that it knew (`V`, or that the channel is
-- occupied is still to be told), or a change that has been told: then it is told how the channel is now.

local FAR, MOST = '100000000000000', 9000000000000000
local held, telling = KEYS[1], KEYS[2]
local node, lifetime, kept, remembered = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

local function whole(number)
  return string.format('%.0f', number)
end

local time = redis.call('TIME')
local micros = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now = math.floor(micros / 1000)

local function ours(key)
  local kind = redis.call('TYPE', key)['ok']
  if kind ~= 'zset' and kind ~= 'none' then redis.call('UNLINK', key) end
end

ours(held)
ours(telling)

local function score_of(event)
  local score = tonumber(redis.call('ZSCORE', telling, event) or '0')
  return score <= MOST and score or 0 -- No node has written it.
end

local told = tonumber(ARGV[5])
for n = 1, told do
  local event, number = ARGV[4 + 2 * n], ARGV[5 + 2 * n]
  local score = redis.call('ZSCORE', telling, event)
  if score and tonumber(score) == tonumber(number) then redis.call('ZREM', telling, event) end
end

local answers = {}
for n = 3, #KEYS do
  local nodes, at = KEYS[n], 5 + 2 * told + 2 * (n - 2) - 1
  local kind, channel = string.sub(ARGV[at], 1, 1), string.sub(ARGV[at], 2)
  local known_by_teller = tonumber(ARGV[at + 1])
  ours(nodes)
  local last = tonumber(redis.call('ZSCORE', nodes, '') or '0')
  if last > MOST then last = 0 end -- No node has written it.
  local known = redis.call('ZSCORE', nodes, node)
  local event = ''
  if kind == 'o' then
    local others = redis.call('ZCOUNT', nodes, whole(now), FAR)
    redis.call('ZADD', held, whole(now), channel)
    redis.call('ZADD', nodes, whole(now + lifetime), node)
    if not known and others == 0 then event = 'o' .. channel end
  else
    redis.call('ZREM', held, channel)
    redis.call('ZREM', nodes, node)
    local occupied, vacated = score_of('o' .. channel), score_of('v' .. channel)
    local was_held = known or (kind == 'V' and vacated == 0) or occupied > vacated
    last = math.max(last, occupied)
    if was_held and redis.call('ZCOUNT', nodes, whole(now), FAR) == 0 then
      redis.call('ZREMRANGEBYSCORE', nodes, '-inf', FAR)
      event = 'v' .. channel
    end
  end
  if event == '' and known_by_teller > last then
    event = (redis.call('ZCOUNT', nodes, whole(now), FAR) > 0 and 'o' or 'v') .. channel
  end
  local number = '0'
  if event ~= '' then
    number = whole(math.max(last + 1, known_by_teller + 1, micros))
    redis.call('ZADD', nodes, number, '')
    redis.call('ZADD', telling, number, event)
  end
  local is_held = redis.call('ZCOUNT', nodes, '-inf', FAR) > 0
  redis.call('PEXPIRE', nodes, is_held and kept or remembered)
  answers[#answers + 1] = event
  answers[#answers + 1] = number
end
redis.call('PEXPIRE', held, kept)
redis.call('PEXPIRE', telling, kept)
return {answers, redis.call('ZRANGEBYSCORE', held, '-inf', whole(now - 2 * lifetime), 'LIMIT', 0, 100)}
