"""The places of a server with workers: limits on subscribers that hold over all of them.

A limit is divided: each worker admits its share without a question, and only tells its supervisor
(`supervision/places.py`). One more has to be asked for. Before the supervisor grants the first
place of an address, of a user, or in all, beyond a worker's share, it has all workers ask for each
of these. So the limit is exact, and nearly all connections cost no question.

`UserPlaces` is another contract: of the nodes of a cluster, which ask for each place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from repeater.brokers.control import Question
from repeater.clients.questions import Questions, encoded

if TYPE_CHECKING:
    from repeater.brokers.control import Control, Member

ALL = "all"
"""The key of the connections in all."""


def key_of_address(address: str) -> str:
    """The key of an address's connections."""
    return f"address {address}"


def key_of_user(user: str) -> str:
    """The key of a user's connections."""
    return f"user {user}"


class WantedPlace(msgspec.Struct, frozen=True, array_like=True):
    """A place that is asked for, of a connection, of a user, or of both. Limits of 0 are off."""

    serial: int
    """Names the connection, for this worker."""
    keys: list[str] = []
    """The keys of which the worker has its share already."""
    counted: bool = False
    """Whether this is a new connection, and not one whose user became known."""
    address: str = ""
    user: str = ""
    connections: int = 0
    connections_per_address: int = 0
    connections_per_user: int = 0
    connection_rate: int = 0
    """0 also where the worker has a token of the rate."""
    connection_burst: int = 0


class PlaceAnswer(msgspec.Struct, frozen=True, array_like=True):
    """Which limit refuses a place, empty for none; and tokens of the rate for later ones."""

    limit: str = ""
    tokens: int = 0


class Division(msgspec.Struct, frozen=True, array_like=True):
    """How limits are divided: among how many workers, and of which keys each place is asked for."""

    workers: int
    keys: list[str]


class KeyChange(msgspec.Struct, frozen=True, array_like=True):
    """Keys of which each place is to be asked for from now on, and keys of which none is left."""

    shared: list[str]
    forgotten: list[str]


class SharedPlaces:
    """One worker's way to the places of its server. Lives inside the node; needs no end."""

    def __init__(self, control: Control, questions: Questions) -> None:
        self._control = control
        self._questions = questions
        self._serial = 0
        self._workers = 0
        self._tokens = 0
        self._keys: set[str] = set()
        questions.register("share_places", self._share)

    async def begin(self) -> None:
        """Learn how limits are divided; a checkpoint only the first time.

        Raises:
            BrokerError: the supervisor does not answer.
        """
        if not self._workers:
            answer = await self._questions.ask_server("divide_places")
            division = msgspec.msgpack.decode(answer, type=Division)
            self._workers = division.workers
            self._keys.update(division.keys)

    def in_share(self, key: str, held: int, limit: int) -> bool:
        """Whether one more is in this worker's share of the limit, if it holds so many."""
        return key not in self._keys and held < limit // self._workers

    def use_token(self) -> bool:
        """Use a token of the rate, if the supervisor has given some in advance."""
        self._tokens -= 1
        if self._tokens >= 0:
            return True
        self._tokens = 0
        return False

    def next_serial(self) -> int:
        """A number for a connection, which this worker gives to no other."""
        self._serial += 1
        return self._serial

    async def ask(self, wanted: WantedPlace) -> str:
        """Ask for a place; return the name of the limit that refuses it, or the empty text.

        Cancelled, the place may be taken: the caller gives it back in any case.

        Raises:
            BrokerError: the supervisor does not answer.
        """
        answer = await self._questions.ask_server("take_place", wanted)
        found = msgspec.msgpack.decode(answer, type=PlaceAnswer)
        self._tokens += found.tokens
        return found.limit

    def give_back(self, serial: int) -> None:
        """Give back all that was asked for by this connection; nothing if it holds nothing."""
        self._control.tell(Question("give_back_place", encoded(serial)))

    def tell(self, news: str, address: str) -> None:
        """Tell of a place in this worker's share: `place_taken`, or `place_left`."""
        self._control.tell(Question(news, address.encode()))

    async def _share(self, _asker: Member, body: bytes) -> bytes:
        """Ask for each place of these keys from now on; what was told before counts there."""
        change = msgspec.msgpack.decode(body, type=KeyChange)
        self._keys.update(change.shared)
        self._keys.difference_update(change.forgotten)
        return b""


class UserPlaces(Protocol):
    """The places of users over all nodes of a cluster. Its owner outlives the node."""

    async def take(self, user: str, most: int) -> bool:
        """Take a place of a user; return whether the user had fewer than `most`.

        Cancelled, it still waits for the engine's answer, for seconds at most, and returns it.
        """

    def give_back(self, user: str) -> None:
        """Give a place back that was taken. Never waits."""
