"""The listening sockets of a server with workers: its supervisor opens and holds all of them.

A worker gets descriptors of those that it accepts from. The supervisor keeps its own: the
connections that wait in the kernel's queue of a worker that ends are accepted by the next one, and
nobody is reset.

On Linux each worker has a socket of its own for each TCP address, and the kernel spreads
connections over them (SO_REUSEPORT): over two workers 1.03 times the mean. Where the sockets are
shared (other systems, Unix sockets, sockets of systemd), that is 1.6 to 1.8 times: whoever is awake
accepts.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from repeater.config.endpoints import Endpoint
from repeater.front.listeners import Listeners, listening_groups
from repeater.front.passed_sockets import PassedSocket, PassedSockets

if TYPE_CHECKING:
    from collections.abc import Sequence

SPREADS: Final = sys.platform == "linux"
"""Whether the kernel spreads connections over the sockets of one address."""


class _Address(NamedTuple):
    """A TCP address for which each worker has a socket."""

    before: int
    """The number of shared sockets that come before it, where `listen` names them."""
    family: int
    place: tuple[str, int]
    backlog: int
    passed: dict[int, list[socket.socket]]
    """Sockets of it that the server before this one passed on, by the worker that gets them."""
    is_plain: bool
    """Whether these began to listen without SO_REUSEPORT."""


class WorkerListeners(Listeners):
    """Sockets that all workers share, and those of each worker. Ended by `close`."""

    def __init__(
        self, workers: int, passed: PassedSockets | None = None, *, spread: bool = SPREADS
    ) -> None:
        """Open nothing yet.

        Args:
            workers: Their number.
            passed: Sockets of the server before this one.
            spread: Whether each worker gets sockets of its own for TCP addresses.
        """
        super().__init__(passed)
        self._workers = workers
        self._spread = spread
        self._addresses: list[_Address] = []
        self._own: dict[int, list[socket.socket]] = {}

    @property
    def port(self) -> int:
        """The first TCP port; 0 if none is open."""
        return next((one.port for one in self.endpoints() if not one.path), 0)

    def endpoints(self) -> list[Endpoint]:
        """The addresses in use, with the ports that the system chose for port 0."""
        found = super().endpoints()
        for address in reversed(self._addresses):
            found.insert(address.before, Endpoint(*address.place))
        return found

    def passable(self) -> list[PassedSocket]:
        """All sockets that are open, for a server that takes over."""
        of_workers = (one for own in self._own.values() for one in own)
        return [*super().passable(), *map(PassedSocket, of_workers)]

    def add_tcp(self, endpoint: Endpoint, backlog: int) -> None:
        """Take every address of a host.

        Raises:
            OSError: the port is taken, or the host is not an address of this machine.
        """
        # Opened as a single process would: a port that any other process has is an error here.
        # With SO_REUSEPORT alone a second server of this user would get half of the connections.
        for group, was_passed in listening_groups(
            endpoint.host, endpoint.port, backlog, self.passed
        ):
            if not self._spread:
                self.sockets += group
            elif was_passed:
                self._add_passed(group, backlog)
            else:
                self._add_address(group[0], backlog, {})
                group[0].close()

    def _add_passed(self, group: Sequence[socket.socket], backlog: int) -> None:
        """Take the sockets of one TCP address over from the server before this one.

        All of them stay open, also if there are more than workers: connections wait in their
        queues.
        """
        # Those of a server without workers. Linux lets others join a socket that listens already,
        # but gives new connections to the others alone. So a worker takes what waits, and gets
        # another one.
        is_plain = not group[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        for one in group:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        numbers = range(1, self._workers + 1)
        parts = {number: list(group[number - 1 :: self._workers]) for number in numbers}
        self._add_address(group[0], backlog, parts, is_plain=is_plain)

    def _add_address(
        self,
        one: socket.socket,
        backlog: int,
        passed: dict[int, list[socket.socket]],
        *,
        is_plain: bool = False,
    ) -> None:
        host, port = one.getsockname()[:2]
        place = str(host), int(port)
        self._addresses.append(
            _Address(len(self.sockets), one.family, place, backlog, passed, is_plain)
        )

    def of(self, number: int) -> Sequence[socket.socket]:
        """The sockets that this worker accepts from; its own ones are opened if need be.

        Raises:
            OSError: another process has taken the port meanwhile.
        """
        if number not in self._own:
            self._own[number] = own = []
            try:
                for address in self._addresses:
                    part = address.passed.pop(number, [])
                    own += part
                    if not part or address.is_plain:
                        own.append(_open_one(address))
            except OSError:
                self.give_up(number)
                raise
        return (*self.sockets, *self._own[number])

    def give_up(self, number: int) -> None:
        """Close this worker's own sockets: the kernel gives new connections to the others.

        Connections that wait in these sockets' queues are reset.
        """
        for one in self._own.pop(number, ()):
            one.close()

    def close(self) -> None:
        """Stop listening, as far as no worker has these sockets. Idempotent."""
        super().close()
        for number in tuple(self._own):
            self.give_up(number)
        for address in self._addresses:
            for part in address.passed.values():
                for one in part:
                    one.close()


def _open_one(address: _Address) -> socket.socket:
    listener = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        # As `socket.create_server` has it, with SO_REUSEPORT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address.place)
        listener.listen(address.backlog)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
