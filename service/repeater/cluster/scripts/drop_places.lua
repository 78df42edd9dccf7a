-- Forgets a node's counts. KEYS: the counts.

return redis.call('UNLINK', KEYS[1])
