"""More commands of the Valkey in this process: of sets, and what presence and events send."""

from __future__ import annotations

from collections.abc import Sequence

from repeater.valkey.pipe import Refused
from tests.memory_network import Network
from tests.memory_sets import FullValkey, _is_above, _is_below
from tests.memory_valkey import _lua


class Members(dict[bytes, None]):
    """A set."""

    def copy(self) -> Members:
        return Members(self)


class PresenceValkey(FullValkey):
    """What presence and events need, too."""

    def _call(self, words: Sequence[bytes]) -> object:
        if self.refusing and words[0].upper() == b"SADD":
            raise Refused(self.refusing)
        return super()._call(words)

    def _lua_call(self, *words: object) -> object:
        if words[0] == b"TYPE" and isinstance(self._get(words[1], object), Members):  # type: ignore[arg-type]
            return _lua.table_from({b"ok": b"set"})
        if words[0] == b"HGETALL":
            return _lua.table_from([*super()._do_hgetall(words[1])])  # type: ignore[arg-type, misc]
        return super()._lua_call(*words)

    def _do_hgetall(self, key: bytes) -> object:
        found = self._get(key, dict)
        if isinstance(found, Members):
            raise Refused("WRONGTYPE Operation against a key holding the wrong kind of value")
        return dict(found or {})

    def _set_of(self, key: bytes) -> Members:
        found = self._get(key, object)
        if found is None:
            return Members()
        if not isinstance(found, Members):
            raise Refused("WRONGTYPE Operation against a key holding the wrong kind of value")
        return found

    def _do_sadd(self, key: bytes, member: bytes) -> object:
        found = self._set_of(key)
        found[member] = None
        self._keep(key, found)  # type: ignore[arg-type]  # a set is a dictionary here
        return 1

    def _do_srem(self, key: bytes, member: bytes) -> object:
        found = self._set_of(key)
        if found.pop(member, 0) is None:
            self._keep(key, found)  # type: ignore[arg-type]  # a set is a dictionary here
        return 1

    def _do_scard(self, key: bytes) -> object:
        return len(self._set_of(key))

    def _do_sunion(self, *keys: bytes) -> object:
        return [*{member: None for key in keys for member in self._set_of(key)}]

    def _do_zcount(self, key: bytes, low: bytes, high: bytes) -> object:
        scores = self._sorted(key).values()
        return sum(_is_above(one, low) and _is_below(one, high) for one in scores)

    def _do_zrange(self, key: bytes, first: bytes, last: bytes, *scores: bytes) -> object:
        names = super()._do_zrange(key, first, last)
        assert isinstance(names, list)
        if not scores:
            return names
        found = self._sorted(key)
        return [part for name in names for part in (name, b"%d" % int(found[name]))]


def with_presence(network: Network) -> Network:
    """A network whose server has these commands, too. Called before anything connects."""
    old = network.valkey
    network.valkey = PresenceValkey(old._now, old._publish)
    return network
