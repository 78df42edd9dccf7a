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
from repeater.front.passed_sockets import PassedSocket, PassedSockets
from repeater.log import get_logger

if TYPE_CHECKING:
    from repeater.config import Settings


_log = get_logger("listeners")


class ListenError(Exception):
    """The server cannot listen where the settings say; the text is one line for the operator."""


class Listeners:
    """Open listeners. Ended by `close`, which also removes the Unix sockets from the disk."""

    def __init__(self, passed: PassedSockets | None = None) -> None:
        """Take the sockets of another server where it listens, and open the others."""
        self.passed = passed or PassedSockets()
        self.sockets: list[socket.socket] = []
        self._inherited: list[socket.socket] = []
        self._paths: list[tuple[Path, int]] = []
        self._passed_paths: list[Path] = []

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
        self.sockets += open_listeners(endpoint.host, endpoint.port, backlog, self.passed)

    def add_unix(self, path: Path, mode: int, backlog: int) -> None:
        """Listen on a Unix socket with this mode: users with write permission may connect.

        A socket file left by a crash, on which no process listens, is replaced.

        Raises:
            OSError: a process listens there, or the socket cannot be created.
        """
        if taken := self.passed.take_unix(path):
            path.chmod(mode)
            self.sockets += taken
            self._passed_paths.append(path)
            return
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
        self._inherited.append(listener)
        listener.set_inheritable(False)
        listener.setblocking(False)
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listener.type != socket.SOCK_STREAM or not listening:
            raise OSError("it is not a listening stream socket")
        if local_only and not _endpoint_of(listener).is_local:
            raise OSError("development mode listens on loopback only")

    def add_passed_inherited(self, *, local_only: bool) -> bool:
        """Take what the other server had inherited; return whether there was anything.

        Raises:
            OSError: it is not a local one.
        """
        taken = self.passed.take_inherited()
        self.sockets += taken
        self._inherited += taken
        if local_only and not all(_endpoint_of(one).is_local for one in taken):
            raise OSError("development mode listens on loopback only")
        return bool(taken)

    def close_others(self) -> None:
        """Close the passed sockets that the settings do not ask for."""
        for one in self.passed.left():
            _log.warning("not listening there any more", endpoint=str(_endpoint_of(one)))
        self.passed.close()

    def passable(self) -> list[PassedSocket]:
        """All sockets, for a server that takes over."""
        return [PassedSocket(one, one in self._inherited) for one in self.sockets]

    def leave_files(self) -> None:
        """Leave the files of Unix sockets in place: another server has these sockets, too."""
        self._paths.clear()

    def own_files(self) -> None:
        """Own the files of passed Unix sockets: the other server leaves them.

        Until then they are the other server's, which goes on if this one fails.
        """
        self._paths += [(path, path.stat().st_ino) for path in self._passed_paths if path.exists()]
        self._passed_paths.clear()

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
    try:
        with _saying("take over the other server's sockets"):
            passed = listeners.add_passed_inherited(local_only=settings.dev)
        if not (endpoints or inherited or passed):
            endpoints = [Endpoint(settings.host, settings.port)]
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
        listeners.close_others()
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


def open_listeners(
    host: str, port: int, backlog: int, passed: PassedSockets | None = None
) -> Sequence[socket.socket]:
    """Open bound, listening, non-blocking sockets for every address of `host`, all on one port.

    Sockets that were `passed` are taken where there are some of the address.

    Raises:
        OSError: the port is taken, or the host is not an address of this machine.
    """
    passed = PassedSockets() if passed is None else passed
    return [one for group, _ in listening_groups(host, port, backlog, passed) for one in group]


def listening_groups(
    host: str, port: int, backlog: int, passed: PassedSockets
) -> Sequence[tuple[Sequence[socket.socket], bool]]:
    """The sockets of each address of `host`, and whether they were passed; see `open_listeners`."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    groups: list[tuple[Sequence[socket.socket], bool]] = []
    try:
        for family, *_, address in addresses:
            place = str(address[0]), port
            group = passed.take_tcp(family, *place)
            was_passed = bool(group)
            if not group:
                group = [socket.create_server(place, family=family, backlog=backlog)]
            groups.append((group, was_passed))
            group[0].setblocking(False)
            port = group[0].getsockname()[1]
    except OSError:
        for opened, _ in groups:
            for one in opened:
                one.close()
        raise
    return groups


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
