"""The places of subscribers over all workers: in all, of an address, of a user, and in a second.

A worker tells of the places in its share, and asks for more (`clients/shared_places.py`). Rule: the
first place beyond a share is granted when all workers have heard that they must ask for this key;
what they took before, they have told before they answer. So the sums here are whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from repeater.clients.questions import encoded
from repeater.clients.shared_places import (
    Division,
    KeyChange,
    PlaceAnswer,
    WantedPlace,
    key_of_address,
    key_of_user,
)
from repeater.clients.throttle import TokenBucket
from repeater.log import get_logger
from repeater.tally import subtract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from repeater.brokers.control import Member
    from repeater.supervision.questions import ServerQuestions
    from repeater.supervision.users import Users

_log = get_logger("limits")

_LEASES: Final = 50  # parts of a second's rate that a worker gets at a time, so 2 % of the rate
_KEYS: Final = 1_000  # keys after which those without a connection are forgotten

_read = msgspec.msgpack.Decoder(WantedPlace).decode


class _Granted(msgspec.Struct):
    """What one connection holds that its worker asked for."""

    counted: bool = False
    address: str = ""
    user: str = ""
    """Until the connection has arrived as this user's."""


class _Worker(msgspec.Struct):
    """What one worker holds."""

    told: Counter[str]
    """Places in its share, by their addresses; the empty one where addresses are not limited."""
    granted: dict[int, _Granted]
    waiting: dict[str, list[int]]
    """Connections that are to arrive, by their users."""


class Places:
    """Lives inside the supervisor; needs no end."""

    def __init__(
        self, questions: ServerQuestions, users: Users, workers: Callable[[], Iterable[int]]
    ) -> None:
        """Take the users of all workers, and the numbers of the workers that are to run."""
        self.held = 0
        self.addresses: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        """Connections by user that have a place, and have not arrived yet."""
        self._questions = questions
        self._connections = users.connections
        self._count = workers
        self._arrivals = TokenBucket()
        self._shared: set[str] = set()
        self._announced: set[str] = set()  # the shared ones, and those of which workers hear now
        self._sharing = trio.Lock()
        self._workers: dict[str, _Worker] = {}
        questions.register("divide_places", self._divide)
        questions.register("take_place", self._take)
        questions.hear("give_back_place", self._give_back)
        questions.hear("place_taken", self._taken)
        questions.hear("place_left", self._left)
        questions.at_end(self._forget)
        users.at_arrival(self._arrived)

    def _of(self, worker: Member) -> _Worker:
        found = self._workers.get(worker.id)
        if found is None:
            found = self._workers[worker.id] = _Worker(Counter(), {}, {})
        return found

    async def _divide(self, _worker: Member, _body: bytes) -> bytes:
        return encoded(Division(len(tuple(self._count())), list(self._announced)))

    async def _take(self, worker: Member, body: bytes) -> bytes:
        wanted = _read(body)
        if not self._shared.issuperset(wanted.keys):
            async with self._sharing:
                await self._share([key for key in wanted.keys if key not in self._shared])
        refused = self._refusal(wanted)
        tokens = 0
        rate = wanted.connection_rate
        if not refused and rate:
            lease = max(1, rate // _LEASES)
            tokens = self._arrivals.take_some(wanted.connection_burst, rate, lease)
            refused = "" if tokens else "connection_rate"
        if not refused:
            self._grant(self._of(worker), wanted)
        return encoded(PlaceAnswer(refused, max(0, tokens - 1)))

    async def _share(self, keys: Sequence[str]) -> None:
        """Have all workers ask for each place of these keys."""
        gone = [key for key in self._shared if not self._holds(key)]
        gone = gone if len(self._shared) > _KEYS else []
        self._announced.update(keys)  # for a worker that begins meanwhile
        change = encoded(KeyChange(list(keys), gone))
        answers = await self._questions.ask_each("share_places", change)
        for one in answers:
            if not isinstance(one.answer, bytes):
                # It serves nobody now; what it takes of its share later may be too many.
                _log.warning("a worker may exceed a limit", worker=one.member.worker)
        self._shared.update(keys)
        self._shared.difference_update(gone)
        self._announced.difference_update(gone)

    def _holds(self, key: str) -> bool:
        kind, _, name = key.partition(" ")
        if kind == "address":
            return bool(self.addresses[name])
        return kind != "user" or bool(self._connections[name] or self.waiting[name])

    def _refusal(self, wanted: WantedPlace) -> str:
        """The limit that refuses a place, but for the rate."""
        user, address, asked = wanted.user, wanted.address, wanted.keys
        if key_of_user(user) in asked and (
            self._connections[user] + self.waiting[user] >= wanted.connections_per_user
        ):
            return "connections_per_user"
        if wanted.connections and self.held >= wanted.connections:
            return "connections"
        if key_of_address(address) in asked and (
            self.addresses[address] >= wanted.connections_per_address
        ):
            return "connections_per_address"
        return ""

    def _grant(self, worker: _Worker, wanted: WantedPlace) -> None:
        held = worker.granted.setdefault(wanted.serial, _Granted())
        if wanted.counted and not held.counted:
            held.counted, held.address = True, wanted.address
            self._count_place(wanted.address, 1)
        if wanted.user and not held.user:
            held.user = wanted.user
            worker.waiting.setdefault(wanted.user, []).append(wanted.serial)
            self.waiting[wanted.user] += 1

    def _count_place(self, address: str, count: int) -> None:
        self.held += count
        if address:
            subtract(self.addresses, address, -count)

    def _taken(self, worker: Member, body: bytes) -> None:
        address = body.decode()
        self._of(worker).told[address] += 1
        self._count_place(address, 1)

    def _left(self, worker: Member, body: bytes) -> None:
        address = body.decode()
        subtract(self._of(worker).told, address)
        self._count_place(address, -1)

    def _arrived(self, worker: Member, user: str) -> None:
        """A connection is its user's from now on, so its place needs no memory any more."""
        found = self._workers.get(worker.id)
        if found is not None and (serials := found.waiting.get(user)):
            self._end_wait(found, serials[0])

    def _end_wait(self, worker: _Worker, serial: int) -> None:
        held = worker.granted[serial]
        if held.user:
            serials = worker.waiting[held.user]
            serials.remove(serial)
            if not serials:
                del worker.waiting[held.user]
            subtract(self.waiting, held.user)
            held.user = ""

    def _give_back(self, worker: Member, body: bytes) -> None:
        serial = msgspec.msgpack.decode(body, type=int)
        found = self._of(worker)
        if serial in found.granted:
            self._free(found, serial)

    def _free(self, worker: _Worker, serial: int) -> None:
        self._end_wait(worker, serial)
        held = worker.granted.pop(serial)
        if held.counted:
            self._count_place(held.address, -1)

    def _forget(self, worker: Member) -> None:
        """Free what a worker held that has ended, also if it was killed."""
        found = self._workers.pop(worker.id, None)
        if found is None:
            return
        for serial in tuple(found.granted):
            self._free(found, serial)
        for address, count in found.told.items():
            self._count_place(address, -count)
