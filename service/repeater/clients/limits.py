"""Limits on subscribers: in all, from one address, of one user, and new ones in a second.

They are checked before a connection is opened, for every transport, and not for calls of the
server API: a back end can publish even when a limit is reached. Connections of an address are
counted at their accept (`front/open_connections.py`), or here if a proxy's header names them. Rule:
a place is taken where it is checked, with no await between, and given back when the connection
ends; so no limit is exceeded while a request waits. Addresses and users are counted only while
their limit is on; a limit on addresses that is switched on counts the connections that come from
then on.

With workers, these are the places of one of them. A place of the whole server is reserved first
(`shared_places`), which waits; then the rule above holds again. So does a user's place with
`scope = "cluster"`, which is one of all nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol, cast

import msgspec

from repeater.causes import Cause, Why
from repeater.clients.addresses import address_key
from repeater.clients.shared_places import (
    ALL,
    SharedPlaces,
    UserPlaces,
    WantedPlace,
    key_of_address,
    key_of_user,
)
from repeater.clients.throttle import TokenBucket
from repeater.tally import subtract

if TYPE_CHECKING:
    from repeater.options import LimitOptions

Limit = Literal[
    "connections",
    "connections_per_address",
    "connections_per_user",
    "connection_rate",
    "open_connections",
    "pending_connections",
]


def limit_reached(limit: str, most: float | None = None) -> Why:
    """The reason of a refusal by a limit of the configuration, and its value if that is known."""
    value = "" if most is None else f", which is {most:g}"
    return Why(Cause.LIMIT, f"the limit {limit}", f"see the setting limits.{limit}{value}")


def too_many_channels(limit: int) -> Why:
    """The reason of a refusal of more channels than a connection may have."""
    text = f"a connection may have {limit} channels, and this would be more"
    return Why(Cause.LIMIT, text, "see the setting channel_limit")


class LimitError(Exception):
    """Every place is taken; `limit` is the option that says so, and it was counted."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.limit = limit


class Places:
    """The places of one node. Lives inside the node; needs no end."""

    def __init__(
        self,
        connections_of: Callable[[str], int],
        refused: Counter[str],
        shared: SharedPlaces | None = None,
        of_cluster: UserPlaces | None = None,
    ) -> None:
        """Make the places of a node.

        Args:
            connections_of: Counts a user's connections of any kind.
            refused: Where refusals are counted.
            shared: The places of the server, where it has workers.
            of_cluster: The places of users over all nodes, where there are several.
        """
        self.shared = shared
        self.of_cluster = of_cluster
        self._connections_of = connections_of
        self._refused = refused
        self._arrivals = TokenBucket()
        self._held = 0
        self._addresses: Counter[str] = Counter()
        self._users: Counter[str] = Counter()
        self.asking: Counter[str] = Counter()
        """Connections, by their keys, for which the supervisor is being asked."""

    def __len__(self) -> int:
        """How many are held."""
        return self._held

    @property
    def counted(self) -> tuple[Counter[str], Counter[str]]:
        """The addresses and the users that are counted now, for the leak tests."""
        return self._addresses, self._users

    @property
    def reserved(self) -> bool:
        """Whether places may have to be reserved, which waits."""
        return self.shared is not None or self.of_cluster is not None

    @contextmanager
    def asked(self, wanted: WantedPlace) -> Iterator[None]:
        """Count a place that is asked for as held, as long as the block lasts."""
        keys = [ALL] if wanted.counted else []
        keys += [key_of_address(wanted.address)] if wanted.address else []
        keys += [key_of_user(wanted.user)] if wanted.user else []
        self.asking.update(keys)
        try:
            yield
        finally:
            for key in keys:
                subtract(self.asking, key)

    def take_address(self, key: str, most: int) -> bool:
        """Count a connection of an address, as `address_key` names it; return whether it may be."""
        if self._addresses[key] >= most:
            return False
        self._addresses[key] += 1
        return True

    def give_back_address(self, key: str) -> None:
        """End what `take_address` began."""
        subtract(self._addresses, key)

    def _refuse(self, limit: Limit) -> None:
        self._refused[limit] += 1
        raise LimitError(limit)


class Carrier(Protocol):
    """The accepted connection that carries a subscriber."""

    refused: bool
    """Whether its address has too many connections."""
    told: bool
    """Whether this was counted and answered."""
    counted: bool
    """Whether it holds a place of its address."""

    def lend(self) -> bool:
        """Whether a new subscriber may use the address's place of this connection."""

    def take_back(self) -> None:
        """End what `lend` began."""

    def identify(self) -> None:
        """Note that there is a subscriber."""


class Place(msgspec.Struct, eq=False):
    """The places that one connection holds. Owned by the code that opens the connection.

    Made empty; `leave` gives back whatever was taken.
    """

    _places: Places
    _taken: bool = False
    _address: str = ""
    _user: str = ""
    _carrier: Carrier | None = None
    _lent: bool = False
    # With workers: what names the places that were asked for (0 for none), and the address with
    # which a place in this worker's share was told (None for none).
    _serial: int = 0
    _told: str | None = None
    _user_of_cluster: str = ""

    async def reserve(
        self,
        limits: LimitOptions,
        *,
        address: str = "",
        user: str = "",
        counted: bool = False,
        carrier: Carrier | None = None,
    ) -> None:
        """Reserve a place for `take` and `take_user`, where workers or nodes share limits.

        A checkpoint only for what is beyond this worker's share, and for a user's place of a
        cluster. Cancelled, the place may be taken until `leave` gives it back.

        Args:
            limits: The limits in force.
            address: The peer's.
            user: The user, if it is known.
            counted: Whether this is a new connection.
            carrier: The accepted connection of a new one.

        Raises:
            LimitError: there are too many, over all workers or nodes.
            BrokerError: the supervisor does not answer.
        """
        shared = self._places.shared
        if shared is None:
            await self._reserve_of_cluster(limits, user)
            return
        key = address_key(address) if counted and limits.connections_per_address else ""
        user = user if limits.connections_per_user else ""
        rate = limits.connection_rate if counted else 0
        if not (user or key or rate or (counted and limits.connections)):
            return
        await shared.begin()
        asked = self._beyond_share(shared, limits, key, user, counted, carrier)
        if rate and shared.use_token():
            rate = 0
        if not (asked or rate):
            if counted and (limits.connections or key):
                self._told = key
                shared.tell("place_taken", key)
            return
        self._serial = self._serial or shared.next_serial()
        wanted = WantedPlace(
            self._serial,
            asked,
            counted=counted and bool(limits.connections or key),
            address=key,
            user=user,
            connections=limits.connections if ALL in asked else 0,
            connections_per_address=limits.connections_per_address,
            connections_per_user=limits.connections_per_user,
            connection_rate=rate,
            connection_burst=limits.connection_burst or rate,
        )
        with self._places.asked(wanted):
            refused = await shared.ask(wanted)
        if refused:
            self._places._refuse(cast("Limit", refused))

    async def _reserve_of_cluster(self, limits: LimitOptions, user: str) -> None:
        of_cluster, most = self._places.of_cluster, limits.connections_per_user
        if of_cluster is None or limits.scope != "cluster" or not (most and user):
            return
        if not self._user_of_cluster:
            if not await of_cluster.take(user, most):
                self._places._refuse("connections_per_user")
            self._user_of_cluster = user

    def _beyond_share(
        self,
        shared: SharedPlaces,
        limits: LimitOptions,
        address: str,
        user: str,
        counted: bool,
        carrier: Carrier | None,
    ) -> list[str]:
        """The keys of which this worker has its share already."""
        places, keys = self._places, list[str]()
        most = limits.connections if counted else 0
        if most and not shared.in_share(ALL, places._held + places.asking[ALL], most):
            keys.append(ALL)
        if address:
            own = carrier is not None and carrier.counted  # it is counted here already
            key, most = key_of_address(address), limits.connections_per_address
            held = places._addresses[address] - own + places.asking[key]
            if not shared.in_share(key, held, most):
                keys.append(key)
        if user:
            key, most = key_of_user(user), limits.connections_per_user
            held = max(places._users[user], places._connections_of(user)) + places.asking[key]
            if not shared.in_share(key, held, most):
                keys.append(key)
        return keys

    def take(self, limits: LimitOptions, address: str, carrier: Carrier | None = None) -> None:
        """Take one more in, from this address, which counts only where addresses do.

        If the accepted connection was counted for its address, its place is used.

        Raises:
            LimitError: there are too many in all, from there, or in this second.
        """
        places = self._places
        if limits.connections and places._held >= limits.connections:
            places._refuse("connections")
        most, key, lent = limits.connections_per_address, "", False
        if carrier is not None:
            if carrier.refused:
                carrier.told = True
                places._refuse("connections_per_address")
            lent = carrier.lend()
        if most and not lent:
            key = address_key(address)
            if places._addresses[key] >= most:
                places._refuse("connections_per_address")
        rate = limits.connection_rate
        if rate and places._arrivals.take(limits.connection_burst or rate, rate):
            if lent and carrier is not None:
                carrier.take_back()
            places._refuse("connection_rate")
        self._carrier, self._lent = carrier, lent
        places._held += 1
        self._taken = True
        if key:
            places._addresses[key] += 1
            self._address = key

    def take_user(self, limits: LimitOptions, user: str) -> None:
        """Count the connection as this user's, if users are limited. Anonymous users never are.

        Raises:
            LimitError: the user has too many.
        """
        most = limits.connections_per_user
        if not (most and user) or self._user:
            self.identify()
            return
        places = self._places
        # Connections from before the limit was switched on hold no place of the user.
        if max(places._users[user], places._connections_of(user)) >= most:
            places._refuse("connections_per_user")
        places._users[user] += 1
        self._user = user
        self.identify()

    def identify(self) -> None:
        """Note that the user is known; only a connection that lent its place is needed then."""
        if self._carrier is not None:
            self._carrier.identify()
            if not self._lent:
                self._carrier = None

    def leave(self) -> None:
        """Give everything back. Idempotent."""
        places = self._places
        if places.shared is not None:
            if self._serial:
                places.shared.give_back(self._serial)
                self._serial = 0
            if self._told is not None:
                places.shared.tell("place_left", self._told)
                self._told = None
        if self._user_of_cluster and places.of_cluster is not None:
            places.of_cluster.give_back(self._user_of_cluster)
            self._user_of_cluster = ""
        if self._taken:
            places._held -= 1
            self._taken = False
        if self._address:
            subtract(places._addresses, self._address)
            self._address = ""
        if self._user:
            subtract(places._users, self._user)
            self._user = ""
        if self._lent and self._carrier is not None:
            self._carrier.take_back()
        self._carrier, self._lent = None, False
