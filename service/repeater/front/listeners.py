"""The listening sockets: TCP, Unix, or inherited from the process that started this one.

Owned by the server, or by the supervisor of its workers. It opens them before anything else, so
that a mistake in the settings is reported at once, and closes them first when it ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

from repeater.config import inherited_descriptors
from repeater.config.endpoints import Endpoint, parse_endpoint

if TYPE_CHECKING:
    from repeater.config import Settings


class ListenError(Exception):
    """The server cannot listen where the settings say; the text is one line for the operator."""


class Listeners:
    """Open listeners. Ended by `close`, which also removes the Unix sockets from the disk."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self._paths: list[tuple[Path, int]] = []

    @property
    def port(self) -> int:
        """The first TCP port; 0 if none is open."""
        names = [one.getsockname() for one in self.sockets if one.family != socket.AF_UNIX]
        return int(names[0][1]) if names else 0

    def endpoints(self) -> list[Endpoint]:
        """The addresses in use, with the ports that the system chose for port 0."""
        return [_endpoint_of(one) for one in self.sockets]

    def add_tcp(self, endpoint: Endpoint, backlog: int) -> None:
        """Listen on every address of a host.

        Raises:
            OSError: the port is taken, or the host is not an address of this machine.
        """
        self.sockets += open_listeners(endpoint.host, endpoint.port, backlog)

    def add_unix(self, path: Path, mode: int, backlog: int) -> None:
        """Listen on a Unix socket with this mode: users with write permission may connect.

        A socket file left by a crash, on which no process listens, is replaced.

        Raises:
            OSError: a process listens there, or the socket cannot be created.
        """
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(os.fspath(path))
            # Clients cannot connect before `listen`, so none ever sees another mode.
            path.chmod(mode)
            listener.listen(backlog)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        self.sockets.append(listener)
        self._paths.append((path, path.stat().st_ino))

    def add_inherited(self, descriptor: int, *, local_only: bool) -> None:
        """Take over a listening socket that was open when the process began.

        Raises:
            OSError: it is not a listening stream socket, or not a local one.
        """
        listener = socket.socket(fileno=descriptor)
        self.sockets.append(listener)
        listener.set_inheritable(False)
        listener.setblocking(False)
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listener.type != socket.SOCK_STREAM or not listening:
            raise OSError("it is not a listening stream socket")
        if local_only and not _endpoint_of(listener).is_local:
            raise OSError("development mode listens on loopback only")

    def close(self) -> None:
        """Stop listening. Idempotent. A path that another process has taken since is kept."""
        for listener in self.sockets:
            if listener.fileno() >= 0:
                with contextlib.suppress(RuntimeError):  # outside Trio no task waits for it
                    trio.lowlevel.notify_closing(listener)
                listener.close()
        for path, inode in self._paths:
            with contextlib.suppress(OSError):
                if path.lstat().st_ino == inode:
                    path.unlink()
        self._paths.clear()


AnyListeners = TypeVar("AnyListeners", bound=Listeners)


def open_all(settings: Settings, listeners: AnyListeners) -> AnyListeners:
    """Listen where the settings say; inherited sockets replace the settings' host and port.

    Args:
        settings: Say where.
        listeners: Gets the sockets, and is returned.

    Raises:
        ListenError: one of them failed; none stays open.
    """
    inherited = inherited_descriptors()
    endpoints = [parse_endpoint(one) for one in settings.listen]
    if not endpoints and not inherited:
        endpoints = [Endpoint(settings.host, settings.port)]
    try:
        for descriptor in inherited:
            with _saying(f"take over descriptor {descriptor}"):
                listeners.add_inherited(descriptor, local_only=settings.dev)
        for endpoint in endpoints:
            with _saying(f"listen on {endpoint}"):
                if endpoint.path:
                    mode = int(settings.unix_mode, 8)
                    listeners.add_unix(Path(endpoint.path), mode, settings.backlog)
                else:
                    listeners.add_tcp(endpoint, settings.backlog)
    except BaseException:
        listeners.close()
        raise
    return listeners


def take_over(descriptors: Iterable[int]) -> Listeners:
    """Listen on sockets that the supervisor of this worker has opened.

    Raises:
        ListenError: one of them failed; none stays open.
    """
    listeners = Listeners()
    try:
        for descriptor in descriptors:
            with _saying(f"take over descriptor {descriptor}"):
                listeners.add_inherited(descriptor, local_only=False)  # the supervisor has judged
    except BaseException:
        listeners.close()
        raise
    return listeners


@contextlib.contextmanager
def _saying(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ListenError(f"cannot {what}: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    """The system's words alone, without those that Python adds to some errors."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


def open_listeners(host: str, port: int, backlog: int) -> Sequence[socket.socket]:
    """Open bound, listening, non-blocking sockets for every address of `host`, all on one port.

    Raises:
        OSError: the port is taken, or the host is not an address of this machine.
    """
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    try:
        for family, *_, address in addresses:
            place = str(address[0]), port
            listener = socket.create_server(place, family=family, backlog=backlog)
            listeners.append(listener)
            listener.setblocking(False)
            port = listener.getsockname()[1]
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _remove_stale(path: Path) -> None:
    """Remove a socket file that no process answers on; leave everything else as it is."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)  # a full backlog is an answer, too
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            return  # `bind` will raise the error


def _endpoint_of(listener: socket.socket) -> Endpoint:
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return Endpoint(path=os.fsdecode(name))
    return Endpoint(str(name[0]), int(name[1]))
