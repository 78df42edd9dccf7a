"""A Valkey in this process: keys, and Lua scripts that are run by a real Lua 5.1.

It has the commands that the broker sends, and the mistakes that it can make: a key of another type,
an unknown script, a refusal. Time is the clock's that it is given. A promoted replica lacks the
last writes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any, Final

import hiredis
from lupa import lua51

from repeater.valkey.pipe import Refused

_LAG: Final = 256  # writes that a replica may be behind

Stream = list[tuple[int, int, list[bytes]]]  # both parts of each id, and its fields with values
Value = dict[bytes, bytes] | Stream | bytes

_WRITES: Final = {"HSET", "HINCRBY", "XADD", "SET"}
_lua: Final = lua51.LuaRuntime(encoding=None)
_functions: dict[bytes, Any] = {}


def words_of(command: bytes) -> list[bytes]:
    """The words of a packed command."""
    reader = hiredis.Reader()
    reader.feed(command)
    words = reader.gets()
    assert isinstance(words, list)
    return words


class MemoryValkey:
    """One primary with its replica."""

    def __init__(self, now: Callable[[], float], publish: Callable[[bytes, bytes], int]) -> None:
        """Tell the time by `now`, in seconds, and give what is published to `publish`."""
        self._now = now
        self._publish = publish
        self._scripts: set[bytes] = set()
        self.data: dict[bytes, Value] = {}
        self.expiry: dict[bytes, float] = {}
        self.refusing = ""
        """What it answers to whatever would write."""
        self._changed: dict[bytes, None] = {}
        # What the replica lacks, one entry for each command: by key the value and its expiry.
        self._behind: deque[dict[bytes, tuple[Value | None, float]]] = deque()
        self._replica: dict[bytes, tuple[Value, float]] = {}

    # -- what tests do to it

    def promote(self, lost: int) -> None:
        """The replica takes over, without the last so many writes. It knows no script."""
        for _ in range(min(lost, len(self._behind))):
            self._behind.pop()
        while self._behind:
            self._replicate(self._behind.popleft())
        self.data = {key: _copied(value) for key, (value, _) in self._replica.items()}
        self.expiry = {key: at for key, (_, at) in self._replica.items()}
        self._scripts.clear()

    def flush_scripts(self) -> None:
        """Forget all scripts."""
        self._scripts.clear()

    def evict(self, key: bytes) -> None:
        """Forget a key, as a server does that has no memory left."""
        self._remove(key)
        self._note_writes()

    def put(self, key: bytes, value: Value) -> None:
        """Have a stranger's value in a key."""
        self.data[key] = value
        self._changed[key] = None
        self._note_writes()

    # -- commands

    def run(self, words: Sequence[bytes]) -> object:
        """Carry a command out; the answer, or a `Refused`."""
        name = words[0].upper()
        try:
            if name in (b"EVALSHA", b"EVAL"):
                return self._evaluate(words)
            return self._call(words)
        except Refused as error:
            return error
        finally:
            self._note_writes()

    def _evaluate(self, words: Sequence[bytes]) -> object:
        script, count = words[1], int(words[2])
        if words[0].upper() == b"EVAL":
            digest = sha1(script, usedforsecurity=False).hexdigest().encode()
            self._scripts.add(digest)
            if digest not in _functions:
                code = b"return function(KEYS, ARGV, redis) " + script + b"\nend"
                _functions[digest] = _lua.execute(code)
            script = digest
        if script not in self._scripts:
            raise Refused("NOSCRIPT No matching script.")
        keys, arguments = words[3 : 3 + count], words[3 + count :]
        redis = _lua.table_from({b"call": self._lua_call, b"pcall": self._lua_pcall})
        return _answer_of(
            _functions[script](_lua.table_from(keys), _lua.table_from(arguments), redis)
        )

    def _lua_call(self, *words: object) -> object:
        return _lua_of(self._call([_word(one) for one in words]))

    def _lua_pcall(self, *words: object) -> object:
        try:
            return self._lua_call(*words)
        except Refused as error:
            return _lua.table_from({b"err": str(error).encode()})

    def _call(self, words: Sequence[bytes]) -> object:
        name = words[0].decode().upper()
        command = getattr(self, f"_do_{name.lower()}", None)
        assert command is not None, f"no such command here: {name}"
        if self.refusing and name in _WRITES:
            raise Refused(self.refusing)
        return command(*words[1:])

    def _get(self, key: bytes, kind: type) -> Any:
        at = self.expiry.get(key)
        if at is not None and at <= self._now():
            self._remove(key)
        value = self.data.get(key)
        if value is not None and not isinstance(value, kind):
            raise Refused("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def _set(self, key: bytes, value: Value) -> None:
        self.data[key] = value
        self._changed[key] = None

    def _remove(self, key: bytes) -> bool:
        self.expiry.pop(key, None)
        self._changed[key] = None
        return self.data.pop(key, None) is not None

    def _do_ping(self) -> object:
        return b"PONG"

    def _do_time(self) -> object:
        seconds, microseconds = divmod(int(self._now() * 1_000_000), 1_000_000)
        return [str(seconds).encode(), str(microseconds).encode()]

    def _do_publish(self, channel: bytes, payload: bytes) -> object:
        return self._publish(channel, payload)

    def _do_hget(self, key: bytes, field: bytes) -> object:
        return (self._get(key, dict) or {}).get(field)

    def _do_hmget(self, key: bytes, *fields: bytes) -> object:
        found = self._get(key, dict) or {}
        return [found.get(field) for field in fields]

    def _do_hset(self, key: bytes, *pairs: bytes) -> object:
        found = self._get(key, dict)
        found = {} if found is None else found
        found.update(zip(pairs[::2], pairs[1::2], strict=True))
        self._set(key, found)
        return len(pairs) // 2

    def _do_hincrby(self, key: bytes, field: bytes, by: bytes) -> object:
        found = self._get(key, dict)
        found = {} if found is None else found
        old = found.get(field, b"0")
        if not old.lstrip(b"-").isdigit():
            raise Refused("ERR hash value is not an integer")
        number = int(old) + int(by)
        found[field] = str(number).encode()
        self._set(key, found)
        return number

    def _do_unlink(self, *keys: bytes) -> object:
        for key in keys:
            self._get(key, object)
        return sum([self._remove(key) for key in keys])

    _do_del = _do_unlink

    def _do_exists(self, *keys: bytes) -> object:
        return sum(self._get(key, object) is not None for key in keys)

    def _do_pexpire(self, key: bytes, milliseconds: bytes) -> object:
        if self._get(key, object) is None:
            return 0
        self.expiry[key] = self._now() + int(milliseconds) / 1000
        self._changed[key] = None
        return 1

    def _do_get(self, key: bytes) -> object:
        return self._get(key, bytes)

    def _do_set(self, key: bytes, value: bytes, *options: bytes) -> object:
        self.expiry.pop(key, None)
        self._set(key, value)
        if options:
            assert options[0].upper() == b"PX"
            self._do_pexpire(key, options[1])
        return b"OK"

    def _do_xadd(self, key: bytes, *words: bytes) -> object:
        found: Stream = self._get(key, list) or []
        assert words[0].upper() == b"MAXLEN"
        size, id_, fields = int(words[1]), words[2], [*words[3:]]
        if size < 0:
            raise Refused("ERR The MAXLEN argument must be >= 0.")
        first, second = map(int, id_.split(b"-"))
        if found and found[-1][:2] >= (first, second):
            raise Refused("ERR The ID specified in XADD is equal or smaller than the target")
        found.append((first, second, fields))
        del found[: max(0, len(found) - size)]
        self._set(key, found)
        return id_

    def _range(self, key: bytes, first: bytes, last: bytes) -> Stream:
        def bound(text: bytes, other: int) -> tuple[int, int]:
            if text in b"-+":
                return (0, 0) if text == b"-" else (2**64, 2**64)
            exclusive = text.startswith(b"(")
            head, _, tail = text.removeprefix(b"(").partition(b"-")
            number = (int(head), int(tail) if tail else other)
            if exclusive:
                number = (number[0], number[1] + (1 if other == 0 else -1))
            return number

        low, high = bound(first, 0), bound(last, 2**64)
        return [one for one in self._get(key, list) or [] if low <= one[:2] <= high]

    def _do_xrange(self, key: bytes, first: bytes, last: bytes, *count: bytes) -> object:
        return _entries(self._range(key, first, last), count)

    def _do_xrevrange(self, key: bytes, last: bytes, first: bytes, *count: bytes) -> object:
        return _entries(self._range(key, first, last)[::-1], count)

    def _do_xlen(self, key: bytes) -> object:
        return len(self._get(key, list) or [])

    # -- the replica

    def _note_writes(self) -> None:
        if not self._changed:
            return
        self._behind.append(
            {key: (_copied(self.data.get(key)), self._expiry_of(key)) for key in self._changed}
        )
        self._changed = {}
        while len(self._behind) > _LAG:
            self._replicate(self._behind.popleft())

    def _expiry_of(self, key: bytes) -> float:
        return self.expiry.get(key, float("inf"))

    def _replicate(self, written: dict[bytes, tuple[Value | None, float]]) -> None:
        for key, (value, at) in written.items():
            if value is None:
                self._replica.pop(key, None)
            else:
                self._replica[key] = (value, at)


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, (dict, list)) else value


def _entries(found: Stream, count: Sequence[bytes]) -> object:
    limit = int(count[1]) if count else len(found)
    return [[b"%d-%d" % (first, second), [*fields]] for first, second, fields in found[:limit]]


def _word(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    assert isinstance(value, (int, float))
    assert value == int(value)
    return str(int(value)).encode()


def _lua_of(value: object) -> Any:
    """As a script gets it: nothing is `false`."""
    if value is None:
        return False
    if isinstance(value, list):
        return _lua.table_from([_lua_of(one) for one in value])
    return value


def _answer_of(value: Any) -> object:
    """As the caller of a script gets it: numbers are whole, a table ends at its first nothing."""
    if value is None or value is False:
        return None
    if value is True:
        return 1
    if isinstance(value, float):
        return int(value)
    if lua51.lua_type(value) != "table":
        return value
    if value[b"err"] is not None:
        raise Refused(value[b"err"].decode())
    answers, number = [], 1
    while (one := value[number]) is not None:
        answers.append(_answer_of(one))
        number += 1
    return answers
