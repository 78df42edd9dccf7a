"""Listening sockets that the server before this one passed on (`--take-over`).

A client that connects meanwhile notices nothing: it waits in the queue of a socket that both
processes have. So no address is bound anew where such a socket listens, and the file of a Unix
socket stays in place.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple


class PassedSocket(NamedTuple):
    """A listening socket of another process."""

    socket: socket.socket
    inherited: bool = False
    """Whether the service manager opened it: no `listen` names it."""


class PassedSockets:
    """The sockets that are there to be taken, each once. Ended by `close`.

    With workers there may be several sockets of one address (SO_REUSEPORT). They are taken
    together: connections that wait in the queue of one that is closed are reset.
    """

    def __init__(self, passed: Iterable[PassedSocket] = ()) -> None:
        self._left = list(passed)

    def take_inherited(self) -> list[socket.socket]:
        """Those that came from the service manager."""
        return self._take(lambda one: one.inherited)

    def take_tcp(self, family: int, host: str, port: int) -> list[socket.socket]:
        """Those of one address; port 0 stands for the port of any."""
        found = self._take(
            lambda one: (
                one.socket.family == family
                and one.socket.getsockname()[0] == host
                and port in (0, one.socket.getsockname()[1])
            )
        )
        others = [one for one in found if one.getsockname()[1] != found[0].getsockname()[1]]
        self._left += map(PassedSocket, others)
        return [one for one in found if one not in others]

    def take_unix(self, path: Path) -> list[socket.socket]:
        """Those of one path."""
        name = os.fspath(path)
        return self._take(
            lambda one: one.socket.family == socket.AF_UNIX and one.socket.getsockname() == name
        )

    def _take(self, matches: Callable[[PassedSocket], bool]) -> list[socket.socket]:
        found = [one for one in self._left if matches(one)]
        self._left = [one for one in self._left if one not in found]
        return [one.socket for one in found]

    def left(self) -> list[socket.socket]:
        """Those that nobody has taken."""
        return [one.socket for one in self._left]

    def close(self) -> None:
        """Close those that nobody has taken."""
        for one in self._left:
            one.socket.close()
        self._left.clear()
