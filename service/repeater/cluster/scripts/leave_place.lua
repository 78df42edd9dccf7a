-- Gives a place of a user back. KEYS: the counts of this node. ARGV: the user.

if redis.call('HINCRBY', KEYS[1], ARGV[1], -1) <= 0 then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 1
