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
from typing import TYPE_CHECKING, Final

from repeater.front.listeners import Listeners, open_listeners

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repeater.config.endpoints import Endpoint

SPREADS: Final = sys.platform == "linux"
"""Whether the kernel spreads connections over the sockets of one address."""


class WorkerListeners(Listeners):
    """Sockets that all workers share, and those of each worker. Ended by `close`."""

    def __init__(self, *, spread: bool = SPREADS) -> None:
        super().__init__()
        self._spread = spread
        self._addresses: list[tuple[socket.AddressFamily, tuple[str, int], int]] = []
        self._own: dict[int, list[socket.socket]] = {}

    @property
    def port(self) -> int:
        """The first TCP port; 0 if none is open."""
        return super().port or next((place[1] for _, place, _ in self._addresses), 0)

    def endpoints(self) -> list[Endpoint]:
        """The addresses in use, with the ports that the system chose for port 0."""
        from repeater.config.endpoints import Endpoint

        return [*super().endpoints(), *(Endpoint(*place) for _, place, _ in self._addresses)]

    def add_tcp(self, endpoint: Endpoint, backlog: int) -> None:
        """Take every address of a host.

        Raises:
            OSError: the port is taken, or the host is not an address of this machine.
        """
        # Opened as a single process would: a port that any other process has is an error here.
        # With SO_REUSEPORT alone a second server of this user would get half of the connections.
        opened = open_listeners(endpoint.host, endpoint.port, backlog)
        if not self._spread:
            self.sockets += opened
            return
        for one in opened:
            name = one.getsockname()
            one.close()
            self._addresses.append((one.family, (str(name[0]), int(name[1])), backlog))

    def of(self, number: int) -> Sequence[socket.socket]:
        """The sockets that this worker accepts from; its own ones are opened if need be.

        Raises:
            OSError: another process has taken the port meanwhile.
        """
        if number not in self._own:
            self._own[number] = own = []
            try:
                own += [_open_one(*one) for one in self._addresses]
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


def _open_one(family: socket.AddressFamily, place: tuple[str, int], backlog: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # As `socket.create_server` has it, with SO_REUSEPORT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(place)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
