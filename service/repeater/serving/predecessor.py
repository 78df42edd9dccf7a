"""The new server's side of `repeater serve --take-over`: it asks the old one for everything.

`successor.py` has the stages. The new server looks first at all that can be wrong and that needs no
data directory: settings, certificate, addresses. It accepts no connection before the old one has
said `committed`. If it fails before that, it ends, and the old one serves on.

An old server that ends in the middle, or is killed, leaves nobody to wait for: the new one goes on
alone, as soon as the lock of the data directory is free.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from repeater.brokers.sqlite.lock import FolderInUseError, hold_folder
from repeater.config import Settings
from repeater.errors import open_service_nursery
from repeater.front.passed_sockets import PassedSocket, PassedSockets
from repeater.log import get_logger
from repeater.serving.admin_call import LINE_LIMIT, SOCKET, socket_path
from repeater.serving.descriptors import CAN_PASS, receive_sockets
from repeater.serving.errors import ServeError
from repeater.serving.successor import (
    COMMITTED,
    LET_GO,
    LOADING,
    METHOD,
    PASS,
    READY,
    VERSION,
)

_log = get_logger("take-over")

_PATIENCE: Final = 10.0  # seconds for each answer of the old server
_LOOK: Final = 0.05  # seconds between two tries to lock the data directory
_BEAT: Final = 1.0  # seconds between two words while this server loads


class Predecessor:
    """A conversation with the old server. Made and ended by `open_predecessor`."""

    def __init__(self, stream: trio.SocketStream, folder: Path) -> None:
        self._stream = stream
        self._folder = folder
        self._received = b""
        self._turn = trio.Lock()
        self._loading = trio.CancelScope()
        self.sockets = PassedSockets()
        """Its listening sockets, after `ask`."""
        self.gone = False
        """Whether the old server has ended meanwhile: then nobody answers any more."""

    async def ask(self) -> None:
        """Ask for the sockets; the old server serves on meanwhile.

        Raises:
            ServeError: the old server refuses or does not answer.
        """
        with self._within():
            await self._send({"method": METHOD, "params": {"version": VERSION, "pid": os.getpid()}})
            message = await self._progress()
            if not isinstance(message, dict):
                return  # it has ended
            await self._say(PASS)
            inherited = message["sockets"]
            try:
                found = await receive_sockets(self._stream.socket, len(inherited))
            except OSError as error:
                raise self._failed(f"its sockets did not come: {error}") from None
        self.sockets = PassedSockets(map(PassedSocket, found, inherited))

    async def let_go(self) -> None:
        """Have the old server close its files. From here on it can publish nothing.

        Raises:
            ServeError: it refuses or does not answer.
        """
        with self._within():
            await self._say(LET_GO)
            self._check(await self._progress(), LET_GO)
        # An old server that is being ended keeps the directory for a while. After some seconds
        # whoever opens the stores says who has it.
        with trio.move_on_after(_PATIENCE):
            while self.gone and _is_held(self._folder):  # noqa: ASYNC110  # nobody tells
                await trio.sleep(_LOOK)

    async def keep_in_touch(self) -> None:
        """Tell the old server that this one is loading, until `commit`."""
        with self._loading:
            while not self.gone:
                await trio.sleep(_BEAT)
                with trio.CancelScope(shield=True), trio.move_on_after(_PATIENCE):
                    await self._say(LOADING)

    async def commit(self) -> None:
        """This server is ready: have the old one leave. From then on this one must serve.

        Raises:
            ServeError: the old one has given up waiting and serves on, or does not answer.
        """
        self._loading.cancel("ready")
        with self._within():
            await self._say(READY)
            self._check(await self._progress(), COMMITTED)

    async def _say(self, word: str) -> None:
        await self._send({"next": word})

    async def _send(self, message: dict[str, Any]) -> None:
        async with self._turn:
            # At an end, what the old server said before is still to be read.
            with suppress(trio.BrokenResourceError):
                await self._stream.send_all(msgspec.json.encode(message) + b"\n")

    async def _progress(self) -> object:
        """What the old server says next; None, and `gone`, at its end."""
        while b"\n" not in self._received:
            try:
                chunk = await self._stream.receive_some(LINE_LIMIT)
            except trio.BrokenResourceError:
                chunk = b""
            if not chunk:
                if not self.gone:
                    _log.warning("the old server has ended: going on alone")
                self.gone = True
                return None
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        message = msgspec.json.decode(line, type=dict[str, Any])
        if "progress" in message:
            return message["progress"]
        raise self._failed(str(message.get("error", "it said something unknown")))

    def _check(self, said: object, due: str) -> None:
        if said not in (due, None):
            raise self._failed(f"it said {said!r}")

    def _failed(self, reason: str) -> ServeError:
        return ServeError(f"cannot take over from the server of {self._folder}: {reason}")

    @contextmanager
    def _within(self) -> Iterator[None]:
        try:
            with trio.fail_after(_PATIENCE):
                yield
        except trio.TooSlowError:
            reason = f"it did not answer within {_PATIENCE:g} s; end it, then start this one"
            raise self._failed(reason) from None


def _is_held(folder: Path) -> bool:
    try:
        with hold_folder(folder):
            return False
    except FolderInUseError:
        return True
    except OSError:
        return False


@asynccontextmanager
async def open_predecessor(
    settings: Settings, *, wanted: bool = True
) -> AsyncIterator[Predecessor | None]:
    """Ask the server of a data directory for its sockets; None if there is none, or not `wanted`.

    Raises:
        ServeError: the old server refuses or does not answer, or this system cannot pass sockets.
    """
    if not wanted:
        yield None
        return
    folder = settings.kept_in
    if folder is None:
        raise ServeError("--take-over finds the running server by data_dir: set it")
    if not CAN_PASS:
        raise ServeError("--take-over is not available on this system: restart the server instead")
    stream = await _connect(folder)
    if stream is None:
        _log.info("no server to take over from", data_dir=str(folder))
        yield None
        return
    async with stream:
        predecessor = Predecessor(stream, folder)
        await predecessor.ask()
        try:
            async with open_service_nursery() as nursery:
                nursery.start_soon(predecessor.keep_in_touch)
                yield predecessor
        finally:
            predecessor.sockets.close()


async def _connect(folder: Path) -> trio.SocketStream | None:
    try:
        with socket_path(folder) as path:
            with trio.fail_after(_PATIENCE):
                return await trio.open_unix_socket(path)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return None
    except (OSError, trio.TooSlowError) as error:
        reason = getattr(error, "strerror", None) or "it does not answer"
        raise ServeError(f"cannot ask the server at {folder / SOCKET}: {reason}") from None
