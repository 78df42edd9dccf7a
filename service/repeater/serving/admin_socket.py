"""The admin socket: how a command on this machine asks the running server of a data directory.

A Unix socket in `data_dir` for the server's own user alone: it needs no port, no key and no
setting, and a caller of the REST API cannot ask what is asked by it.

A connection is one conversation. The peer sends a line of JSON, `{"method": ..., "params": {...}}`.
The server answers with lines `{"progress": ...}`, as many as the method says, and with one line
`{"result": ...}` or `{"error": "one line of text"}`, and closes. In between the method may await
more lines of the peer. The peer's hanging up cancels the method.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from repeater.errors import BrokerError, open_service_nursery
from repeater.failures import Failures
from repeater.log import get_logger
from repeater.serving.admin_call import LINE_LIMIT, SOCKET, AdminError, socket_path

_log = get_logger("admin")

_PEERS: Final = 8  # conversations at once
_LINES: Final = 16  # unread lines of one peer
_PATIENCE: Final = 5.0  # seconds for a peer's first line, and for its reading of one of ours


class Conversation:
    """A method's way to its peer. Lives inside `open_admin_socket`."""

    def __init__(self, stream: trio.SocketStream, lines: trio.MemoryReceiveChannel[bytes]) -> None:
        self._stream = stream
        self._lines = lines
        self.socket = stream.socket
        """For what is not a line: descriptors."""

    async def say(self, progress: object) -> None:
        """Tell the peer how far the method has come."""
        await self.send({"progress": progress})

    async def ask(self) -> dict[str, Any]:
        """The peer's next line. The caller sets the deadline; a hang-up cancels the method.

        Raises:
            AdminError: the line is not a JSON object.
        """
        return _object(await self._lines.receive())

    async def send(self, message: dict[str, object]) -> None:
        """Send one line; a peer that does not read is hung up on, which cancels the method."""
        with trio.move_on_after(_PATIENCE) as scope, suppress(trio.BrokenResourceError):
            await self._stream.send_all(msgspec.json.encode(message) + b"\n")
        if scope.cancelled_caught:
            await trio.aclose_forcefully(self._stream)


AdminMethod = Callable[[dict[str, Any], Conversation], Awaitable[object]]
"""Does what a peer asks with these parameters, and returns the result, which is encoded as JSON.

Raises AdminError or BrokerError, whose text the peer gets.
"""


@asynccontextmanager
async def open_admin_socket(
    folder: Path | None, methods: Mapping[str, AdminMethod], failures: Failures
) -> AsyncIterator[None]:
    """Answer in a data directory for as long as the block lasts, which must hold its lock.

    A server that cannot answer there serves all the same, and says so in its log.

    Args:
        folder: It exists; None for a server that has no data directory, and cannot be asked.
        methods: What may be asked, by name.
        failures: Counts the errors of ours, which end one conversation.
    """
    if folder is None:
        yield
        return
    try:
        listener = _listen(folder)
    except OSError as error:
        _log.warning("no admin socket", folder=str(folder), reason=error.strerror)
        yield
        return
    path, inode = folder / SOCKET, (folder / SOCKET).lstat().st_ino
    desk = _Desk(methods, failures)
    try:
        async with open_service_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, desk.converse, [trio.SocketListener(listener)])
            yield
    finally:
        # The next server may listen there already: it came by taking over.
        with suppress(OSError):
            if path.lstat().st_ino == inode:
                path.unlink()


def _listen(folder: Path) -> trio.socket.SocketType:
    """Bind the socket, in place of one that a kill left.

    Raises:
        OSError: the folder is read-only, or its file system has no sockets.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        (folder / SOCKET).unlink(missing_ok=True)
        with socket_path(folder) as path:
            listener.bind(path)
            # Peers cannot connect before `listen`, so none ever sees another mode.
            os.chmod(path, 0o600)
        listener.listen(_PEERS)
        return trio.socket.from_stdlib_socket(listener)
    except BaseException:
        listener.close()
        raise


class _Desk:
    """Answers every peer. Lives inside `open_admin_socket`."""

    def __init__(self, methods: Mapping[str, AdminMethod], failures: Failures) -> None:
        self._methods = methods
        self._failures = failures
        self._peers = 0

    async def converse(self, stream: trio.SocketStream) -> None:
        """Have one conversation, whose errors end nothing else."""
        self._peers += 1
        try:
            async with stream:
                send, receive = trio.open_memory_channel[bytes](_LINES)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_read, stream, send, nursery.cancel_scope)
                    conversation = Conversation(stream, receive)
                    await conversation.send(await self._answer(conversation, receive))
                    nursery.cancel_scope.cancel("it was answered")
        except Exception as error:  # the one boundary around a conversation
            self._failures.note("admin", error)
        finally:
            self._peers -= 1

    async def _answer(
        self, conversation: Conversation, lines: trio.MemoryReceiveChannel[bytes]
    ) -> dict[str, object]:
        try:
            with trio.move_on_after(_PATIENCE) as scope:
                question = _object(await lines.receive())
            if scope.cancelled_caught:
                raise AdminError("no question came")
            # Not before: hung up on while it asks, a peer would not hear the reason.
            if self._peers > _PEERS:
                raise AdminError("too many ask at once")
            method = self._methods.get(str(question.get("method")))
            params = question.get("params", {})
            if method is None or not isinstance(params, dict):
                raise AdminError(f"this server cannot do that: {question.get('method')!r}")
            return {"result": await method(params, conversation)}
        except (AdminError, BrokerError) as error:
            return {"error": str(error)}


async def _read(
    stream: trio.SocketStream, lines: trio.MemorySendChannel[bytes], method: trio.CancelScope
) -> None:
    """Cut what the peer sends into lines; its end ends the method."""
    gathered = b""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.WouldBlock):
        async for chunk in stream:
            *whole, gathered = (gathered + chunk).split(b"\n")
            for line in whole:
                lines.send_nowait(line)
            if len(gathered) > LINE_LIMIT:
                break
    method.cancel("the peer has hung up")


def _object(line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        raise AdminError("that is not a JSON object") from None
