"""More commands of the Valkey in this process: of sorted sets, and the rest of those of hashes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from repeater.valkey.pipe import Refused
from tests.memory_network import Network
from tests.memory_valkey import MemoryValkey, _lua

_WRITES: Final = {"ZADD", "HSETNX"}  # a full server allows removals
_KINDS: Final[dict[type, bytes]] = {dict: b"hash", list: b"stream", bytes: b"string"}


class Sorted(dict[bytes, float]):
    """A sorted set: members with their scores."""

    def copy(self) -> Sorted:
        return Sorted(self)

    def in_order(self) -> list[tuple[float, bytes]]:
        return sorted((score, member) for member, score in self.items())


class FullValkey(MemoryValkey):
    """What members, denials, places and presence need, too."""

    def _call(self, words: Sequence[bytes]) -> object:
        if self.refusing and words[0].decode().upper() in _WRITES:
            raise Refused(self.refusing)
        return super()._call(words)

    def _lua_call(self, *words: object) -> object:
        if words[0] == b"TYPE":
            return _lua.table_from({b"ok": self._do_type(words[1])})
        return super()._lua_call(*words)

    def _get(self, key: bytes, kind: type) -> Any:
        value = super()._get(key, kind)
        if kind is dict and isinstance(value, Sorted):
            raise Refused("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def _do_type(self, key: Any) -> bytes:
        value = self._get(key, object)
        if isinstance(value, Sorted):
            return b"zset"
        return b"none" if value is None else _KINDS[type(value)]

    def _sorted(self, key: bytes) -> Sorted:
        found = self._get(key, Sorted)
        return Sorted() if found is None else found

    def _keep(self, key: bytes, value: dict[bytes, bytes] | Sorted) -> None:
        if value:
            self._set(key, value)  # type: ignore[arg-type]  # scores are numbers
        else:
            self._remove(key)

    def _do_zadd(self, key: bytes, *pairs: bytes) -> object:
        found = self._sorted(key)
        before = len(found)
        found.update(zip(pairs[1::2], map(float, pairs[::2]), strict=True))
        self._keep(key, found)
        return len(found) - before

    def _do_zrem(self, key: bytes, *members: bytes) -> object:
        found = self._sorted(key)
        gone = [one for one in members if found.pop(one, None) is not None]
        if gone:
            self._keep(key, found)
        return len(gone)

    def _do_zscore(self, key: bytes, member: bytes) -> object:
        score = self._sorted(key).get(member)
        return None if score is None else b"%.17g" % score

    def _do_zcard(self, key: bytes) -> object:
        return len(self._sorted(key))

    def _do_zrange(self, key: bytes, first: bytes, last: bytes) -> object:
        found = [member for _, member in self._sorted(key).in_order()]
        end = int(last)
        return found[int(first) : None if end == -1 else end + 1]

    def _do_zrangebyscore(self, key: bytes, low: bytes, high: bytes, *limit: bytes) -> object:
        found = [
            member
            for score, member in self._sorted(key).in_order()
            if _is_above(score, low) and _is_below(score, high)
        ]
        return found[int(limit[1]) : int(limit[1]) + int(limit[2])] if limit else found

    def _do_zremrangebyscore(self, key: bytes, low: bytes, high: bytes) -> object:
        gone = self._do_zrangebyscore(key, low, high)
        assert isinstance(gone, list)
        return self._do_zrem(key, *gone)

    def _do_hsetnx(self, key: bytes, field: bytes, value: bytes) -> object:
        if self._do_hget(key, field) is not None:
            return 0
        self._do_hset(key, field, value)
        return 1

    def _do_hdel(self, key: bytes, *fields: bytes) -> object:
        found: dict[bytes, bytes] = self._get(key, dict) or {}
        gone = [one for one in fields if found.pop(one, None) is not None]
        if gone:
            self._keep(key, found)
        return len(gone)

    def _do_hgetall(self, key: bytes) -> object:
        return [part for pair in (self._get(key, dict) or {}).items() for part in pair]

    def _do_hkeys(self, key: bytes) -> object:
        return [*(self._get(key, dict) or {})]

    def _do_hlen(self, key: bytes) -> object:
        return len(self._get(key, dict) or {})

    def _do_incr(self, key: bytes) -> object:
        number = int(self._get(key, bytes) or 0) + 1
        self._set(key, str(number).encode())
        return number

    def _do_expire(self, key: bytes, seconds: bytes) -> object:
        return self._do_pexpire(key, b"%d" % (1_000 * int(seconds)))


def _is_above(score: float, bound: bytes) -> bool:
    if bound.startswith(b"("):
        return score > float(bound[1:])
    return score >= float(bound)


def _is_below(score: float, bound: bytes) -> bool:
    if bound.startswith(b"("):
        return score < float(bound[1:])
    return score <= float(bound)


def with_sets(network: Network) -> Network:
    """A network whose server has these commands, too. Called before anything connects."""
    old = network.valkey
    network.valkey = FullValkey(old._now, old._publish)
    return network
