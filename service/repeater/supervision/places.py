"""The places of subscribers over all workers: in all, of an address, of a user, and in a second.

A place is checked and taken in one step, when the worker's question begins. It is given back when
the worker says so, or has ended.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from repeater.clients.shared_places import WantedPlace
from repeater.clients.throttle import TokenBucket
from repeater.supervision.users import subtract

if TYPE_CHECKING:
    from repeater.brokers.control import Member
    from repeater.supervision.questions import ServerQuestions
    from repeater.supervision.users import Users

_read = msgspec.msgpack.Decoder(WantedPlace).decode


class _Held(msgspec.Struct):
    """What one connection holds."""

    counted: bool = False
    address: str = ""
    user: str = ""


class Places:
    """Lives inside the supervisor; needs no end."""

    def __init__(self, questions: ServerQuestions, users: Users) -> None:
        """Take the users, who have connections from before their limit was switched on."""
        self.held = 0
        self.addresses: Counter[str] = Counter()
        self.users: Counter[str] = Counter()
        self._arrivals = TokenBucket()
        self._connections = users.connections
        self._of_workers: dict[str, dict[int, _Held]] = {}
        questions.register("take_place", self._take)
        questions.hear("give_back_place", self._give_back)
        questions.at_end(self._forget)

    async def _take(self, worker: Member, body: bytes) -> bytes:
        wanted = _read(body)
        refused = self._refusal(wanted)
        if not refused:
            self._hold(worker, wanted)
        return refused.encode()

    def _refusal(self, wanted: WantedPlace) -> str:
        """The limit that refuses a place; the rate comes last, since asking uses it up."""
        user, address = wanted.user, wanted.address
        # Connections from before the limit was switched on hold no place of the user.
        if user and (max(self.users[user], self._connections[user]) >= wanted.connections_per_user):
            return "connections_per_user"
        if not wanted.counted:
            return ""
        if wanted.connections and self.held >= wanted.connections:
            return "connections"
        if address and self.addresses[address] >= wanted.connections_per_address:
            return "connections_per_address"
        rate = wanted.connection_rate
        if rate and self._arrivals.take(wanted.connection_burst, rate):
            return "connection_rate"
        return ""

    def _hold(self, worker: Member, wanted: WantedPlace) -> None:
        held = self._of_workers.setdefault(worker.id, {}).setdefault(wanted.serial, _Held())
        if wanted.counted and not held.counted:
            held.counted = True
            self.held += 1
            if wanted.address:
                held.address = wanted.address
                self.addresses[wanted.address] += 1
        if wanted.user and not held.user:
            held.user = wanted.user
            self.users[wanted.user] += 1

    def _give_back(self, worker: Member, body: bytes) -> None:
        serial = msgspec.msgpack.decode(body, type=int)
        held = self._of_workers.get(worker.id, {}).pop(serial, None)
        if held is not None:
            self._free(held)

    def _forget(self, worker: Member) -> None:
        """Free what a worker held that has ended, also if it was killed."""
        for held in self._of_workers.pop(worker.id, {}).values():
            self._free(held)

    def _free(self, held: _Held) -> None:
        self.held -= held.counted
        if held.address:
            subtract(self.addresses, held.address, 1)
        if held.user:
            subtract(self.users, held.user, 1)
