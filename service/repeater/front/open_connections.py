"""The open connections: how many there are, whose they are, and which of them wait for nothing yet.

A connection is *pending* while the server knows nobody behind it and does nothing for it: in a
handshake, before a whole request head, between two requests, before a Centrifugo `connect`. It is
*busy* while a request of it is served. It is *known* for the rest of its life as soon as it has a
subscriber, or has made a call with the API key. Rule: pending connections make room for others, and
known ones never do; so who connects and stays silent takes neither memory nor descriptors away.
"""

from __future__ import annotations

import socket
from itertools import takewhile
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from repeater.api.wrong_request import API
from repeater.causes import Cause, Why
from repeater.clients.addresses import address_key
from repeater.clients.limits import Limit, Places, limit_reached
from repeater.log import get_logger
from repeater.transports.sockets import abort_socket

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from repeater.api.keys import ApiKey
    from repeater.clients.refusals import Refusals
    from repeater.options import LimitOptions

_log = get_logger("acceptor")

REFUSED_TIMEOUT: Final = 1.0
"""Seconds in which a connection of an address with too many can show the API key."""
_GRACE: Final = 1.0  # seconds in which an honest client has sent its request, on most networks
_LOGGED: Final = 1_000  # refused connections between two lines of log
_SILENT: Final = Why(
    Cause.LIMIT,
    "the connection was silent, and others needed its place",
    "see the settings limits.pending_connections and limits.pending_per_address",
)

Pending = dict["OpenConnection", None]
"""In the order of the last activity."""


class OpenConnection(msgspec.Struct, eq=False, gc=False):
    """One connection, from its accept to its end. Owned by `OpenConnections`."""

    _all: OpenConnections
    sock: socket.socket
    since: float = 0.0
    """When it became pending: at its accept, or when its last request ended."""
    address: str = ""
    """The client's as limits count it; empty while only a proxy is known."""
    state: str = "known"
    requests: int = 0
    """Requests that are served now, behind the ASGI server."""
    counted: bool = False
    """Whether it holds a place of its address."""
    lent: bool = False
    """Whether a subscriber uses this place: another one on the same connection takes its own."""
    refused: bool = False
    """Whether its address has too many: only calls with the API key are served."""
    told: bool = False
    """Whether `refused` was counted and answered where a subscription was asked for."""

    def lend(self) -> bool:
        """Whether a new subscriber may use the place of this connection."""
        if not self.counted or self.lent:
            return False
        self.lent = True
        return True

    def take_back(self) -> None:
        """End what `lend` began: the address has room again, though the connection may go on.

        It is pending then: a browser's connection stays open for a while after its WebSocket.
        """
        self.lent = False
        self._all.free(self)
        if self.state == "known":
            self._all.make_busy(self) if self.requests else self._all.make_pending(self)

    def identify(self) -> None:
        """Note that there is a subscriber: from now on the connection is known. Idempotent."""
        self._all.identify(self)

    def identify_caller(self) -> None:
        """Note a call with the API key: the connection is known, and its address not limited."""
        self._all.free(self)
        self._all.identify(self)

    def begin(self) -> None:
        """Note that a request begins to be served."""
        self.requests += 1
        if self.state == "pending":
            self._all.make_busy(self)

    def end(self) -> None:
        """Note that a request was served."""
        self.requests -= 1
        if self.state == "busy" and not self.requests:
            self._all.make_pending(self)

    def may_call(self, path: str, pairs: list[tuple[bytes, bytes]], query: bytes) -> bool:
        """Whether a request is a call of the server API with its key. Then its caller is known."""
        if not path.startswith(API):
            return False
        headers = dict(reversed(pairs))  # the first of each, as `web/api.py` reads them
        key = self._all.key
        if not key.admits(headers.get(b"x-api-key"), headers.get(b"authorization"), query):
            return False
        self.identify_caller()
        return True


class OpenConnections:
    """Lives inside the `Acceptor`; needs no end."""

    def __init__(
        self,
        places: Places,
        limits: Callable[[], LimitOptions],
        limited: Counter[str],
        refusals: Refusals,
        key: ApiKey,
    ) -> None:
        """Take the places of the node, the limits in force, and where refusals are counted."""
        self.sockets: dict[socket.socket, OpenConnection | None] = {}
        """Every open socket; None for a known one, whose client's memory should be small."""
        self.key = key
        self._places = places
        self._limits = limits
        self._limited = limited
        self._refusals = refusals
        self._default = four_fifths_of_descriptors()
        self._open = 0
        self._pending: Pending = {}
        self._pending_of: dict[str, Pending] = {}
        self._busy: Pending = {}
        self._turned_away = 0

    def __len__(self) -> int:
        return self._open

    @property
    def pending(self) -> int:
        """How many are pending."""
        return len(self._pending)

    def take(self, address: str) -> bool:
        """Reserve room for one more; return whether there is room. Give it back with `leave`.

        If there is none, a pending connection makes room: the address's own, if it has more than
        its share, else the oldest of all, else the one that has been served for the longest time.
        """
        limits = self._limits()
        most = limits.open_connections or self._default
        if most and self._open >= most:
            share = limits.pending_per_address
            own = self._pending_of.get(address_key(address)) if address else None
            crowd = own if own and share and len(own) > share else self._pending or self._busy
            if not crowd:
                self._turn_away(most, address)
                return False
            self._drop(next(iter(crowd)), "open_connections")
        self._open += 1
        return True

    def enter(self, sock: socket.socket, address: str) -> OpenConnection:
        """Add the socket of a connection for which `take` reserved room.

        `address` is empty for a proxy's: its connection is known, and counts for no address until
        `name` names its client.
        """
        connection = OpenConnection(self, sock)
        self.sockets[sock] = connection
        if address:
            self.name(connection, address)
        return connection

    def of(self, sock: socket.socket) -> OpenConnection | None:
        """The connection of this socket, unless it is known and counts for no address."""
        return self.sockets.get(sock)

    def name(self, connection: OpenConnection, address: str) -> None:
        """Count the connection for its client's address, and as pending."""
        if connection.address:
            return
        limits, key = self._limits(), address_key(address)
        connection.address = key
        if most := limits.connections_per_address:
            connection.counted = self._places.take_address(key, most)
            connection.refused = not connection.counted
        own = self.make_pending(connection)
        if connection.refused:
            self._drop_refused(key)
        share = limits.pending_per_address
        if share and len(own) > share:
            self._drop_if_old(next(iter(own)))
        elif limits.pending_connections and len(self._pending) > limits.pending_connections:
            self._drop_if_old(next(iter(self._pending)))

    def leave(self, sock: socket.socket) -> None:
        """Give back everything that the connection of this socket holds. Call it once."""
        connection = self.sockets.pop(sock)
        if connection is None:
            self._open -= 1
            return
        self._forget(connection)
        if connection.refused and not connection.told:
            self._count("connections_per_address", connection.address)
        self.free(connection)
        self._open -= connection.state != "dropped"

    def give_back(self) -> None:
        """Give back the room of a connection that never entered."""
        self._open -= 1

    def identify(self, connection: OpenConnection) -> None:
        """See `OpenConnection.identify`."""
        if connection.state != "known":
            self._forget(connection)
        if connection.state != "dropped":
            connection.state = "known"
            if not (connection.counted or connection.refused):
                self.sockets[connection.sock] = None

    def free(self, connection: OpenConnection) -> None:
        """Count the connection for its address no longer."""
        connection.refused = False
        if connection.counted:
            connection.counted = False
            self._places.give_back_address(connection.address)

    def make_busy(self, connection: OpenConnection) -> None:
        """See `OpenConnection.begin`."""
        self._forget(connection)
        connection.state = "busy"
        self._busy[connection] = None

    def make_pending(self, connection: OpenConnection) -> Pending:
        """See `OpenConnection.end`; return all pending ones of the address."""
        if connection.state != "known":
            self._forget(connection)
        connection.state, connection.since = "pending", trio.current_time()
        self._pending[connection] = None
        own = self._pending_of.get(connection.address)
        if own is None:
            own = self._pending_of[connection.address] = {}
        own[connection] = None
        return own

    def _forget(self, connection: OpenConnection) -> None:
        if connection.state == "pending":
            del self._pending[connection]
            own = self._pending_of[connection.address]
            del own[connection]
            if not own:
                del self._pending_of[connection.address]
        elif connection.state == "busy":
            del self._busy[connection]

    def _drop_refused(self, key: str) -> None:
        """Reset idle connections that this address has too many, once they had their second."""
        since = trio.current_time() - _GRACE
        idle = takewhile(lambda one: one.since < since, self._pending_of[key])
        for connection in [one for one in idle if one.refused]:
            connection.told = True
            self._drop(connection, "connections_per_address")

    def _drop_if_old(self, connection: OpenConnection) -> None:
        if trio.current_time() - connection.since > _GRACE:
            self._drop(connection, "pending_connections")

    def _drop(self, connection: OpenConnection, limit: Limit) -> None:
        """Reset a connection in favour of a newer one; its task ends it then."""
        self._forget(connection)
        connection.state = "dropped"
        self._open -= 1
        self._count(limit, connection.address)
        abort_socket(connection.sock)

    def _count(self, limit: Limit, address: str) -> None:
        self._limited[limit] += 1
        most = getattr(self._limits(), limit) or self._default
        why = _SILENT if limit == "pending_connections" else limit_reached(limit, most)
        self._refusals.note(why, "connection", address=address)

    def _turn_away(self, most: int, address: str) -> None:
        if self._turned_away % _LOGGED == 0:
            _log.warning("too many connections, new ones are closed", open_connections=most)
        self._turned_away += 1
        self._count("open_connections", address)


def four_fifths_of_descriptors() -> int:
    """The default of `open_connections`; 0, for no limit, where descriptors have none.

    The rest is for listeners, files, the back end and the database.
    """
    try:
        import resource
    except ImportError:  # not on every system
        return 0
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else soft * 4 // 5
