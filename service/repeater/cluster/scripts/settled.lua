-- Forgets a lost node: all that was to be done for it is done.
--
-- KEYS: the lost nodes, their rows. ARGV: the node's id.

redis.call('HDEL', KEYS[2], ARGV[1])
return redis.call('ZREM', KEYS[1], ARGV[1])
