"""Which members a node knows: pure decisions on lists and news that come by different ways.

A list comes with each beat that finds a change. News of one that joins or leaves come by the bus,
sooner or later than a list that was made before. So all carry a version, which grows with each
change: news win over a list that is older. They do so for some seconds only, since an engine that
has lost its data may begin with lower versions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from repeater.brokers.control import Member

_KEPT: Final = 10.0  # seconds for which news win over a list


class MemberRow(msgspec.Struct, array_like=True, frozen=True):
    """A member as the engine keeps it: an array that only grows at the end."""

    id: str
    name: str
    worker: int = 0
    version: str = ""
    """Of its program."""
    options: str = ""
    """A digest of what the nodes of a cluster should have in common; empty: not told."""

    def member(self) -> Member:
        """The same as all others know it. It is a server of its own."""
        return Member(self.id, self.name, self.id, self.worker)


class Change(msgspec.Struct, frozen=True):
    """What a list or news have changed."""

    joined: list[MemberRow] = []
    left: list[Member] = []


class _News(msgspec.Struct, frozen=True):
    version: int
    until: float
    row: MemberRow | None = None


class Roster:
    """Lives inside `Members`."""

    def __init__(self, me: Member) -> None:
        self._me = me
        self._others: dict[str, MemberRow] = {}
        self._joined: dict[str, _News] = {}
        self._left: dict[str, _News] = {}

    def members(self) -> tuple[Member, ...]:
        """All members, this node first."""
        return (self._me, *(row.member() for row in self._others.values()))

    def rows(self) -> Iterable[MemberRow]:
        """The rows of the others."""
        return self._others.values()

    @property
    def has_news(self) -> bool:
        """Whether it differs from the last list, or may."""
        return bool(self._joined or self._left)

    def __contains__(self, member: str) -> bool:
        return member in self._others

    def listed(self, version: int, rows: Iterable[MemberRow], now: float) -> Change:
        """Take a whole list of this version."""
        self._forget(version, now)
        found = {row.id: row for row in rows if row.id != self._me.id and row.id not in self._left}
        for member, news in self._joined.items():
            if news.row is not None:
                found.setdefault(member, news.row)
        # In the order in which they were heard of first: a list is in the order of the beats.
        before = self._others
        self._others = {member: found[member] for member in before if member in found}
        self._others.update(found)
        return Change(
            [row for row in found.values() if row.id not in before],
            [row.member() for row in before.values() if row.id not in found],
        )

    def _forget(self, version: int, now: float) -> None:
        """Forget the news that a list of this version has, and those that are too old to win."""
        for kept in (self._joined, self._left):
            for member, news in tuple(kept.items()):
                if news.version <= version or news.until <= now:
                    del kept[member]

    def joined(self, row: MemberRow, version: int, now: float) -> Change:
        """Take the news that one has joined."""
        gone = self._left.get(row.id)
        if row.id == self._me.id or (gone is not None and gone.version > version):
            return Change()
        self._left.pop(row.id, None)
        self._joined[row.id] = _News(version, now + _KEPT, row)
        is_new = row.id not in self._others
        self._others[row.id] = row
        return Change([row] if is_new else [])

    def left(self, member: str, version: int, now: float) -> Change:
        """Take the news that one has left, or is lost."""
        known = self._joined.get(member)
        if member == self._me.id or (known is not None and known.version > version):
            return Change()
        self._joined.pop(member, None)
        self._left[member] = _News(version, now + _KEPT)
        row = self._others.pop(member, None)
        return Change(left=[] if row is None else [row.member()])
