"""Whose question is sent next, so that no client shuts out the others.

Two rules. A client has one question under way; its other questions wait behind that one. And the
turns of an address are shared by *parties*: a party is a user, or the address of anonymous clients.
The last quarter of the turns goes to parties that hold none, and freed turns go round the parties
that wait. So one party cannot hold every turn, however many connections it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

_RESERVED = 4  # one turn in so many is for parties that hold none


class Lines:
    """One line for each client that asks now. Lives inside a back end, for all its addresses."""

    def __init__(self) -> None:
        self._lines: dict[str, trio.Lock] = {}

    def __len__(self) -> int:
        """The number of clients with a question."""
        return len(self._lines)

    @asynccontextmanager
    async def first_of(self, client: str) -> AsyncIterator[None]:
        """Wait until this client has no other question under way. The caller sets the deadline."""
        line = self._lines.setdefault(client, trio.Lock())
        try:
            async with line:
                yield
        finally:
            if not line.locked():  # a lock that somebody waits for is handed over locked
                self._lines.pop(client, None)


class Turns:
    """The turns of one address. Lives inside an endpoint.

    Those that wait have no bound of their own: each belongs to a connection, by `Lines`.
    """

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._reserved = total // _RESERVED
        self._held = Counter[str]()
        # The parties that wait, next one first, each with its waiters in the order they came.
        self._waiting: dict[str, dict[trio.Event, None]] = {}

    @property
    def taken(self) -> int:
        """The number of questions under way."""
        return self._total - self._free

    async def take(self, party: str) -> None:
        """Wait for a turn of this party. The caller sets the deadline. Cancelled, none is taken."""
        # Whoever waits here cannot have a free turn now, so a newcomer overtakes nobody who could.
        if self._may(party):
            await trio.lowlevel.checkpoint_if_cancelled()
            self._hand_to(party)
            return
        given = trio.Event()
        self._waiting.setdefault(party, {})[given] = None
        try:
            await given.wait()
        except BaseException:
            if given.is_set():  # cancelled in the moment in which the turn was given
                self.give_back(party)
            else:
                self._forget(party, given)
            raise

    def give_back(self, party: str) -> None:
        """End a turn of this party, and give free turns to those that wait."""
        self._held[party] -= 1
        if not self._held[party]:
            del self._held[party]
        self._free += 1
        while (following := self._next()) is not None:
            given = next(iter(self._waiting[following]))
            self._forget(following, given)
            if following in self._waiting:  # to the end of the round
                self._waiting[following] = self._waiting.pop(following)
            self._hand_to(following)
            given.set()

    def _may(self, party: str) -> bool:
        return self._free > self._reserved or (self._free > 0 and not self._held[party])

    def _next(self) -> str | None:
        """The next party that may have a turn. At most `total` others are passed over."""
        if not self._free:
            return None
        return next((party for party in self._waiting if self._may(party)), None)

    def _hand_to(self, party: str) -> None:
        self._free -= 1
        self._held[party] += 1

    def _forget(self, party: str, given: trio.Event) -> None:
        waiting = self._waiting[party]
        del waiting[given]
        if not waiting:
            del self._waiting[party]
