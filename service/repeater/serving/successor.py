"""The old server's side of `repeater serve --take-over`: what it gives to the server after it.

The stages, and what ends each of them (`predecessor.py` has the other side of the conversation):

`SERVING` until a new server asks.
`ASKED`: everything goes on; the new server gets copies of the listening sockets, and opens those
    that are missing. Its word `let go` ends this stage. If it fails: `SERVING`.
`LET_GO`: publishing and history answer error 100, because the files are closed and their lock is
    free. The new server loads them. Its word `ready` ends this stage. If it fails or is silent:
`TAKING_AGAIN`: the same, until the files are loaded again. Then `SERVING`.
`COMMITTED`: this server accepts no connection, asks its clients to leave, and ends.

**The commit point** is the moment at which the new server's `ready` is read: before, every failure
leads back to `serving`; behind it nothing does. The new server accepts connections once it has been
told so, never before. Until then the old one accepts them. Both have the same sockets, so no client
sees the change.

The lock of the data directory judges whatever goes wrong otherwise: the old server goes on only
with the lock in its hand, and a new one that never got `committed` ends and so gives it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any, Final, Protocol

import trio

from repeater.errors import BrokerError
from repeater.front.passed_sockets import PassedSocket
from repeater.log import get_logger
from repeater.serving.admin_call import AdminError
from repeater.serving.admin_socket import Conversation
from repeater.serving.descriptors import send_sockets

_log = get_logger("take-over")

METHOD: Final = "take_over"
VERSION: Final = 1
"""Of the conversation. A server of another version is restarted instead."""
PASS: Final = "pass the sockets"
LET_GO: Final = "let go"
LOADING: Final = "loading"
READY: Final = "ready"
COMMITTED: Final = "committed"

_PATIENCE: Final = 10.0  # seconds for the new server's next word; a loading one speaks each second
_LOADING: Final = 60.0  # seconds in all that it may load
_AGAIN: Final = 0.2  # seconds between two tries to take the file again


class Stage(Enum):
    """How far a take-over is."""

    SERVING = auto()
    ASKED = auto()
    LET_GO = auto()
    TAKING_AGAIN = auto()
    COMMITTED = auto()


class Handoff(Protocol):
    """What a server gives to the one after it."""

    def passable(self) -> Sequence[PassedSocket]:
        """The listening sockets."""

    async def let_go(self) -> None:
        """Commit what was accepted and close the data directory's files, with their lock.

        Publishing and history answer error 100 from now on. Not cancelled.
        """

    async def take_again(self) -> None:
        """Open the files again, and publish again.

        Raises:
            BrokerError: they cannot be opened now.
        """

    def leave(self) -> None:
        """Accept nothing more, leave the files of Unix sockets, ask the clients to leave, end."""


class Successor:
    """Answers the server that comes after this one. Lives inside the server."""

    def __init__(self, handoff: Handoff) -> None:
        self._handoff = handoff
        self._ending = False
        self.stage = Stage.SERVING

    def end(self) -> None:
        """The server shuts down by itself: nothing is taken again from now on."""
        self._ending = True

    async def take_over(self, params: dict[str, Any], conversation: Conversation) -> None:
        """Give everything to the peer; an admin method. Cancelled by the peer's hanging up.

        Raises:
            AdminError: another take-over is under way, or the peer is of another version, says
                something else than it should, or is silent.
        """
        if params.get("version") != VERSION:
            raise AdminError("the running server is of another version: restart it instead")
        if self.stage is not Stage.SERVING:
            raise AdminError("another take-over is under way")
        _log.info("a new server takes over", pid=params.get("pid"))
        self.stage = Stage.ASKED
        try:
            with _within(_PATIENCE):
                await self._pass_sockets(conversation)
            await _wait_word(LET_GO, conversation)
            self.stage = Stage.LET_GO
            await self._handoff.let_go()
            await conversation.say(LET_GO)
            await _wait_word(READY, conversation)
            self.stage = Stage.COMMITTED  # with no await since the peer's word was read
        except (AdminError, BrokerError) as error:
            # At once: the peer has to end before the lock is free.
            await conversation.send({"error": str(error)})
            raise
        finally:
            if self.stage is not Stage.COMMITTED:
                await self._go_on()
        with trio.CancelScope(shield=True):
            await conversation.say(COMMITTED)
        _log.info("the new server has taken over")
        self._handoff.leave()

    async def _pass_sockets(self, conversation: Conversation) -> None:
        passable = self._handoff.passable()
        await conversation.say({"sockets": [one.inherited for one in passable]})
        await _expect(PASS, conversation)
        try:
            await send_sockets(conversation.socket, [one.socket for one in passable])
        except OSError as error:
            raise AdminError(f"the sockets cannot be passed: {error.strerror}") from None

    async def _go_on(self) -> None:
        """Serve on: the peer has failed."""
        if self._ending:
            return
        if self.stage is Stage.LET_GO:
            self.stage = Stage.TAKING_AGAIN
            with trio.CancelScope(shield=True):
                await self._take_again()
        self.stage = Stage.SERVING
        _log.warning("the new server has failed, this one serves on")

    async def _take_again(self) -> None:
        # No deadline: a peer that stands still has the lock until its user ends it.
        told = ""
        while not self._ending:
            try:
                await self._handoff.take_again()
                return
            except BrokerError as error:
                if str(error) != told:
                    told = str(error)
                    _log.error("the data directory cannot be taken again yet", reason=told)
            await trio.sleep(_AGAIN)


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Around words of the peer: its silence for so many seconds is an `AdminError`."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise AdminError(f"the new server was silent for {seconds:g} s") from None


async def _next_word(conversation: Conversation) -> object:
    return (await conversation.ask()).get("next")


async def _wait_word(due: str, conversation: Conversation) -> None:
    """Wait for the peer's word, for as long as it says that it is loading, within bounds."""
    with _within(_LOADING):
        word: object = LOADING
        while word == LOADING:
            with _within(_PATIENCE):
                word = await _next_word(conversation)
    if word != due:
        raise AdminError(f"{due!r} was due")


async def _expect(word: str, conversation: Conversation) -> None:
    if await _next_word(conversation) != word:
        raise AdminError(f"{word!r} was due")
