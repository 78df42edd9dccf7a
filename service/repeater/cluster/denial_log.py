"""What a node knows of the cluster's denials: pure decisions on numbered changes and whole tables.

Each change has a number, which the engine gives; news of changes may come late, twice or never. A
node applies them in their order. If one is missing, the whole table is read; what differs is
applied. A failover may lose the last changes and give their numbers to others. So each change has a
random mark as well, and that of the change before it. An engine that has lost its data, or the end
of it, lifts nothing: the denials that it lost are written anew, also those that still wait here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Final

import msgspec

from repeater.access.grants import Denial

_KEPT: Final = 1_000  # changes that wait for one that is missing; more, and the table is read


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One change. As a message of the bus it is an array that only grows at the end."""

    number: int
    mark: str
    before: str
    """The mark of the change before it; empty for the first one of all."""
    name: bytes
    value: bytes
    """Empty: the denial is lifted."""


class Table(msgspec.Struct, frozen=True):
    """All denials of the engine, and the last change that they have."""

    number: int
    mark: str
    is_later: bool
    """Whether the change that the reader knew last is among those before."""
    rows: Mapping[bytes, bytes]


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
        before, end = b"1" if kind == b"tokens" else b"0", b"0"
    issued_before, expire_at, lifted = _seconds(before), _seconds(end), not value
    if not space or (kind == b"tokens") != bool(issued_before):
        raise ValueError("not a denial")
    if kind == b"token" and text:
        return Denial(token_id=text, expire_at=expire_at, lifted=lifted)
    if kind in (b"user", b"tokens"):
        return Denial(user=text, issued_before=issued_before, expire_at=expire_at, lifted=lifted)
    raise ValueError("not a denial")


def _denials(rows: Mapping[bytes, bytes]) -> dict[bytes, Denial]:
    """The denials of a table, without what no node has written."""
    found = {}
    for name, value in rows.items():
        with suppress(ValueError):
            denial = denial_of(name, value)
            if not denial.lifted:  # The table has no row for what is lifted.
                found[name] = denial
    return found


def _seconds(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:  # 64 bits
        raise ValueError("not Unix seconds")
    return int(text)


def _is_wider(mine: bytes, other: bytes) -> bool:
    """Whether a value refuses more than another one, or something else."""
    if not other or not mine.startswith(b"0 "):  # Revocations are joined when they are written.
        return mine != other
    mine_end, other_end = (int(one.partition(b" ")[2]) for one in (mine, other))
    return other_end != 0 and (mine_end == 0 or mine_end > other_end)


class DenialLog:
    """Lives inside `ClusterDenials`."""

    def __init__(self) -> None:
        self.number = 0
        self.mark = ""
        """Number and mark of the last change that was applied."""
        self._table: dict[bytes, tuple[int, bytes]] = {}
        self._marks: dict[int, str] = {}
        self._waiting: dict[int, Change] = {}
        self.foreign = 0
        """Rows of the tables that were read which no node had written."""
        self.unwritten: dict[bytes, bytes] = {}
        """Names and values of denials that the engine has lost, until they are written anew."""

    @property
    def behind(self) -> bool:
        """Whether a change is missing, so that the table must be read."""
        return bool(self._waiting)

    @property
    def waiting(self) -> tuple[Change, ...]:
        """Changes that wait for one that is missing, in the order of their numbers."""
        return tuple(change for _, change in sorted(self._waiting.items()))

    def value(self, name: bytes) -> bytes:
        """What is in force; empty for nothing."""
        return self._table.get(name, (0, b""))[1]

    def has(self, change: Change) -> bool:
        """Whether a change is applied; one that is too old to be known counts as applied."""
        return change.number <= self.number and (
            self._marks.get(change.number, change.mark) == change.mark
        )

    def take(self, change: Change) -> list[Change]:
        """Take a change; give those that are to be applied now, in their order."""
        if self.has(change):
            return []
        if not self.number < change.number <= self.number + _KEPT:  # Its number was given twice.
            # Others still wait: the engine may have lost them, so nobody else may know them.
            if len(self._waiting) >= _KEPT:
                self._waiting.clear()
            self._waiting[change.number] = change
            return []
        self._waiting[change.number] = change
        ready = []
        while (one := self._waiting.get(self.number + 1)) and one.before == self.mark:
            ready.append(self._waiting.pop(one.number))
            self._advance(one.number, one.mark)
            self._put(one)
        return ready

    def _advance(self, number: int, mark: str) -> None:
        self.number, self.mark = number, mark
        self._marks[number] = mark
        if len(self._marks) > _KEPT:  # Reading the table leaves numbers out.
            del self._marks[next(iter(self._marks))]

    def _put(self, change: Change) -> None:
        self.unwritten.pop(change.name, None)
        if change.value:
            self._table[change.name] = change.number, change.value
        else:
            self._table.pop(change.name, None)

    def read(self, found: Table) -> list[Denial]:
        """Take the whole table; give what is to be applied. Foreign entries are left out."""
        rows = _denials(found.rows)
        self.foreign += len(found.rows) - len(rows)
        changed = list[Denial]()
        if not found.is_later:
            changed += self._put_waiting()
            self._find_lost(found, rows)
        old, self._table = self._table, {}
        for name, denial in rows.items():
            value, known = found.rows[name], old.get(name, (0, b""))
            if name in self.unwritten and known[1] != value and not found.is_later:
                continue
            self.unwritten.pop(name, None)
            self._table[name] = known if known[1] == value else (found.number, value)
            if known[1] != value:
                changed.append(denial)
        for name, known in old.items():
            if name in self.unwritten:
                self._table[name] = known
            elif name not in self._table:
                changed.append(denial_of(name, b""))
        self._advance(found.number, found.mark)
        waiting, self._waiting = self._waiting, {}
        for number in sorted(waiting):
            if number > found.number:
                ready = self.take(waiting[number])
                changed += [denial_of(one.name, one.value) for one in ready]
        # What still waits is read with the next look at the table: its numbers may be foreign.
        self._waiting = {}
        return changed

    def withdraw(self, marks: Collection[str]) -> list[Change]:
        """Take out what waits and has one of these marks, in the order of the numbers."""
        found = [one for one in self.waiting if one.mark in marks]
        for one in found:
            del self._waiting[one.number]
        return found

    def lose(self, changes: Iterable[Change]) -> list[Denial]:
        """Take that the engine has lost these changes; give what is to be applied.

        What they refuse is put in force and written anew; what they lift is not lifted.
        """
        wider = self._put_in_force(changes)
        self.unwritten |= {one.name: one.value for one in wider}
        return [denial_of(one.name, one.value) for one in wider]

    def _put_waiting(self) -> list[Denial]:
        """Put in force what waits for a change that is missing; give what is to be applied.

        The engine may have lost it, and nobody else may know it. In the table it is found to be
        lost, and is written anew.
        """
        wider = self._put_in_force(self.waiting)
        return [denial_of(one.name, one.value) for one in wider]

    def _put_in_force(self, changes: Iterable[Change]) -> list[Change]:
        """Put in force what refuses more than is in force; lifts nothing. Gives these changes."""
        wider = list[Change]()
        for one in changes:
            if one.value and _is_wider(one.value, self.value(one.name)):
                self._put(one)
                wider.append(one)
        return wider

    def _find_lost(self, found: Table, rows: Mapping[bytes, Denial]) -> None:
        """Note what the engine has lost: all that is newer than what both have.

        If it has another value of a denial, nobody knows which is newer: the wider one stays.
        """
        same = found.number if self._marks.get(found.number) == found.mark else 0
        for name, (number, value) in self._table.items():
            other = found.rows[name] if name in rows else b""
            if number > same and _is_wider(value, other):
                self.unwritten[name] = value
        self._marks = {number: mark for number, mark in self._marks.items() if number <= same}

    def expired(self, now: int) -> list[tuple[bytes, bytes]]:
        """Names and values of denials that have expired up to `now`, in Unix seconds."""
        return [
            (name, value)
            for name, (_, value) in self._table.items()
            if 0 < int(value.partition(b" ")[2]) <= now
        ]

    def forget(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Take out denials of these names that still have these values."""
        for name, value in rows:
            if self.value(name) == value:
                del self._table[name]
                self.unwritten.pop(name, None)
