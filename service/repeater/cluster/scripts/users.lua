-- How many different users several nodes have in a channel.
--
-- KEYS: the users of each node.

local found = redis.pcall('SUNION', unpack(KEYS))
if found['err'] then return 0 end
return #found
