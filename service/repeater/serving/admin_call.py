"""A conversation with the running server of a data directory, for commands: sync, no Trio.

The other end, and the form of a conversation, are in `admin_socket.py`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from repeater.errors import RepeaterError

SOCKET: Final = "admin.sock"
"""The name of the socket in the data directory."""

LINE_LIMIT: Final = 65_536
"""Bytes of one line of a conversation."""

_LONGEST: Final = 100  # bytes of a socket's path: 108 on Linux and 104 elsewhere, with a zero


class AdminError(RepeaterError):
    """The server did not do what was asked; the text is one line."""


class NobodyThereError(AdminError):
    """No server answers at this data directory."""


class AdminCall:
    """One conversation. Made and ended by `open_admin_call`."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        """For what is not a line: descriptors."""
        self._received = b""

    def say(self, message: dict[str, Any]) -> None:
        """Send a line to the method.

        Raises:
            AdminError: the server has hung up.
        """
        try:
            self.socket.sendall(msgspec.json.encode(message) + b"\n")
        except OSError:
            raise AdminError("the server ended the conversation") from None

    def next(self, timeout: float | None = 10.0) -> dict[str, Any]:
        """The server's next line: with `progress`, or with `result` and then no more.

        Args:
            timeout: Seconds; None waits for as long as the server lives.

        Raises:
            AdminError: the server answers with an error, hangs up, or does not answer in time.
        """
        self.socket.settimeout(timeout)
        while b"\n" not in self._received:
            try:
                chunk = self.socket.recv(LINE_LIMIT)
            except TimeoutError:
                raise AdminError(f"the server did not answer within {timeout:g} s") from None
            except OSError:
                chunk = b""
            if not chunk or len(self._received) > LINE_LIMIT:
                raise AdminError("the server ended the conversation")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
        if "error" in message:
            raise AdminError(str(message["error"]))
        return message

    def result(self, timeout: float | None = 10.0) -> Any:
        """The result, behind any progress.

        Raises:
            AdminError: as `next`.
        """
        while "result" not in (message := self.next(timeout)):
            pass
        return message["result"]


@contextlib.contextmanager
def open_admin_call(folder: Path, method: str, **params: object) -> Iterator[AdminCall]:
    """Ask the server that uses a data directory; the end of the block ends the conversation.

    Raises:
        NobodyThereError: no server answers there.
        AdminError: the server is busy, or belongs to another user.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with connection:
        connection.settimeout(5.0)
        try:
            with socket_path(folder) as path:
                connection.connect(path)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            raise NobodyThereError(f"no server answers in {folder}") from None
        except OSError as error:
            raise AdminError(f"cannot ask the server in {folder}: {error.strerror}") from None
        call = AdminCall(connection)
        call.say({"method": method, "params": params})
        yield call


@contextlib.contextmanager
def socket_path(folder: Path) -> Iterator[str]:
    """A name for the socket in the folder that is short enough for the system.

    Raises:
        OSError: the folder does not exist, or the name is too long and this system has no other.
    """
    path = os.fspath(folder / SOCKET)
    if len(os.fsencode(path)) <= _LONGEST:
        yield path
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
