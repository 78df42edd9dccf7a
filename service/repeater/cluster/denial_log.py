"""What a node knows of the cluster's denials: pure decisions on numbered changes and whole tables.

Each change has a number, which the engine gives; news of changes may come late, twice or never. A
node applies them in their order. If one is missing, the whole table is read; what differs is
applied. An engine that has lost its data, or the end of it, lifts nothing: the denials that it lost
are written anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from repeater.access.grants import Denial

_KEPT: Final = 1_000  # changes that wait for one that is missing; more, and the table is read


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One change. As a message of the bus it is an array that only grows at the end."""

    epoch: str
    number: int
    name: bytes
    value: bytes
    """Empty: the denial is lifted."""


class Found(msgspec.Struct, frozen=True):
    """What a whole table means: what is to be applied, and what the engine has lost."""

    changed: list[Denial]
    lost: list[Denial]


def name_of(denial: Denial) -> bytes:
    """What the denial is about: `<kind> <user or token>`."""
    kind, text = denial.key
    return f"{kind} {text}".encode(errors="surrogatepass")


def value_of(denial: Denial) -> bytes:
    """The rest of it; empty if it is lifted."""
    return b"" if denial.lifted else b"%d %d" % (denial.issued_before, denial.expire_at)


def denial_of(name: bytes, value: bytes) -> Denial:
    """The denial that a name and a value mean.

    Raises:
        ValueError: no node has written them.
    """
    kind, space, rest = name.partition(b" ")
    text = rest.decode(errors="surrogatepass")
    before, _, end = value.partition(b" ")
    if not value:
        before = b"1" if kind == b"tokens" else b"0"
    issued_before, expire_at, lifted = _seconds(before), _seconds(end or b"0"), not value
    if not space or (kind == b"tokens") != bool(issued_before):
        raise ValueError("not a denial")
    if kind == b"token" and text:
        return Denial(token_id=text, expire_at=expire_at, lifted=lifted)
    if kind in (b"user", b"tokens"):
        return Denial(user=text, issued_before=issued_before, expire_at=expire_at, lifted=lifted)
    raise ValueError("not a denial")


def _seconds(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:  # 64 bits
        raise ValueError("not Unix seconds")
    return int(text)


class DenialLog:
    """Lives inside `ClusterDenials`."""

    def __init__(self) -> None:
        self.epoch = ""
        self.number = 0
        """Of the last change that was applied."""
        self._table: dict[bytes, tuple[int, bytes]] = {}
        self._waiting: dict[int, Change] = {}

    @property
    def behind(self) -> bool:
        """Whether a change is missing, so that the table must be read."""
        return bool(self._waiting)

    def get(self, name: bytes) -> tuple[int, bytes]:
        """The number of the last change of a denial, and its value; 0 and empty if not known."""
        return self._table.get(name, (0, b""))

    def take(self, change: Change) -> list[Change]:
        """Take a change; give those that are to be applied now, in their order."""
        if not self.epoch and change.number == 1:  # the first one ever
            self.epoch = change.epoch
        if change.epoch != self.epoch or change.number > self.number + _KEPT:
            self._waiting = {change.number: change}
            return []
        if change.number <= self.number:
            return []
        self._waiting[change.number] = change
        ready = []
        while self.number + 1 in self._waiting:
            ready.append(self._waiting.pop(self.number + 1))
            self.number += 1
            self._put(ready[-1])
        return ready

    def _put(self, change: Change) -> None:
        if change.value:
            self._table[change.name] = change.number, change.value
        else:
            self._table.pop(change.name, None)

    def read(self, epoch: str, number: int, table: Mapping[bytes, bytes]) -> Found:
        """Take the whole table of this version; foreign entries are left out."""
        has_lost = bool(self.epoch) and (epoch != self.epoch or number < self.number)
        kept = 0 if epoch != self.epoch else number
        changed, lost = list[Denial](), list[Denial]()
        old, self._table = self._table, {}
        for name, value in table.items():
            try:
                denial = denial_of(name, value)
            except ValueError:
                continue
            known = old.get(name, (0, b""))
            if known[1] == value:
                self._table[name] = known
            elif not (has_lost and known[0] > kept):
                self._table[name] = number, value
                changed.append(denial)
        for name, (at, value) in old.items():
            if name in self._table:
                continue
            if has_lost and at > kept:
                self._table[name] = 0, value
                lost.append(denial_of(name, value))
            else:
                changed.append(denial_of(name, b""))
        waiting = self._waiting.values()
        self.epoch, self.number, self._waiting = epoch, number, {}
        later = [one for one in waiting if one.epoch == epoch and one.number > number]
        for one in sorted(later, key=lambda one: one.number):
            changed += [denial_of(ready.name, ready.value) for ready in self.take(one)]
        # What still waits is read with the next look at the table: its numbers may be foreign.
        self._waiting = {}
        return Found(changed, lost)

    def expired(self, now: int) -> list[tuple[bytes, bytes]]:
        """Take out the denials that have expired up to `now`, in Unix seconds."""
        found = []
        for name, (_, value) in tuple(self._table.items()):
            if 0 < int(value.partition(b" ")[2]) <= now:
                found.append((name, value))
                del self._table[name]
        return found
