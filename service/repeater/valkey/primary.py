"""One primary, as long as this process needs it: a connection for commands, and one for the bus.

They begin and end together, and come back by themselves. A server that is paused, cut off or no
primary any more is left: whoever asked is told at once, and the next one is looked for.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from random import random
from typing import TYPE_CHECKING, Final, Protocol

import trio

from repeater.log import get_logger
from repeater.valkey.dial import answer_to, dial
from repeater.valkey.pipe import Lost, Pipe, Refused, ignore, packed

if TYPE_CHECKING:
    from repeater.valkey.dial import Greeting
    from repeater.valkey.sentinel import Locator
    from repeater.valkey.url import Address

_log = get_logger("engine")

_PING: Final = 3.0  # seconds between two looks at the server, about
_UNHEARD: Final = 3  # looks without a message by the bus, after which it is left
_LOCATE: Final = 10.0  # seconds between two questions whether it is where it was, about
_TICKS: Final = 4  # looks at a silent server within the timeout
_FIRST_PAUSE: Final = 0.1  # seconds before it is tried again, doubled each time
_LAST_PAUSE: Final = 2.0

_PING_COMMAND: Final = packed("PING")
_ROLE_COMMAND: Final = packed("ROLE")


class Owner(Protocol):
    """Whom a primary tells its news. No method waits, except for room."""

    def connected(self, primary: Primary) -> None:
        """Both connections are there. The owner subscribes, and then calls `confirm`."""

    def disconnected(self, primary: Primary) -> None:
        """They have ended, after `connected`."""

    def probe(self, primary: Primary) -> None:
        """Publish to a channel that is subscribed to; its message is told to `heard`."""

    def push(self, message: list[object]) -> None:
        """Something has come by the bus."""

    async def wait_room(self) -> None:
        """Wait until more can be taken from the bus."""


class Primary:
    """Lives inside its engine, whose nursery runs `run`."""

    def __init__(
        self, locator: Locator, greeting: Greeting, owner: Owner, *, timeout: float
    ) -> None:
        """Take what is told of the primary.

        Args:
            locator: Says where the primary is.
            greeting: What each connection begins with.
            owner: Is told what happens.
            timeout: Seconds after which a server that does not answer is left.
        """
        self._locator = locator
        self._greeting = greeting
        self._owner = owner
        self._timeout = timeout
        self._commands: Pipe | None = None
        self._bus: Pipe | None = None
        self._left = trio.Event()
        self._unheard = 0
        self._pause = _FIRST_PAUSE
        self.losses: Counter[str] = Counter()
        """How often it was left, by what was the matter."""
        self.address: Address | None = None
        """Where it was found last."""
        self.why = "not connected yet"
        """Why it is not there; empty while it is."""

    @property
    def commands(self) -> Pipe:
        """The connection for commands.

        Raises:
            Lost: the primary is not there.
        """
        if self._commands is None:
            raise Lost(self.why)
        return self._commands

    @property
    def bus(self) -> Pipe:
        """The connection for subscriptions.

        Raises:
            Lost: the primary is not there.
        """
        if self._bus is None:
            raise Lost(self.why)
        return self._bus

    def leave(self, half: str, why: str) -> None:
        """End the connections, and look for the primary again.

        `half` says what is the matter: `commands`, `bus`, or `role`.
        """
        if self._commands is not None and not self._left.is_set():
            self.losses[half] += 1
            self._note(f"{half}: {why}")
            self._left.set()

    def confirm(self) -> bool:
        """Note that all subscriptions are made; whether it is there from now on.

        It is not if it was left in the same pass of the loop.
        """
        if self._left.is_set():
            return False
        self.why = ""
        self._pause = _FIRST_PAUSE
        _log.info("the engine is there", **self._known())
        return True

    def heard(self) -> None:
        """Note that the probe has come by the bus."""
        self._unheard = 0

    async def run(self) -> None:
        """Keep the connections until cancelled."""
        while True:
            try:
                self.address = await self._locator.find()
                async with (
                    dial(self.address, self._greeting) as commands,
                    dial(self.address, self._greeting, self._owner) as bus,
                ):
                    with trio.fail_after(self._timeout):
                        _check_primary(await answer_to(commands, "ROLE"))
                    await self._serve(commands, bus)
            except (Lost, Refused) as error:
                self._note(str(error))
            except trio.TooSlowError:
                self._note(f"no answer within {self._timeout:g} s")
            await trio.sleep(self._pause * (0.5 + random() / 2))
            self._pause = min(_LAST_PAUSE, 2 * self._pause)

    def _note(self, why: str) -> None:
        if why != self.why:
            _log.warning("the engine is not there", **self._known(), reason=why)
        self.why = why

    def _known(self) -> dict[str, str]:
        known = {"part": self._greeting.part, "address": str(self.address or "")}
        return {name: value for name, value in known.items() if value}

    async def _serve(self, commands: Pipe, bus: Pipe) -> None:
        """Be connected until something ends it."""
        self._commands, self._bus = commands, bus
        self._left = trio.Event()
        try:
            self._owner.connected(self)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_end, commands, "commands")
                nursery.start_soon(self._watch_end, bus, "bus")
                nursery.start_soon(self._watch_silence, commands, "commands")
                nursery.start_soon(self._watch_silence, bus, "bus")
                nursery.start_soon(self._look, commands, bus)
                nursery.start_soon(self._locate)
                await self._left.wait()  # No deadline: it may live for ever.
                nursery.cancel_scope.cancel("the primary is left")
        finally:
            self._commands = self._bus = None
            self.why = self.why or "the connection was ended here"
            for pipe in (commands, bus):
                pipe.end(Lost(self.why))
            self._owner.disconnected(self)

    async def _watch_end(self, pipe: Pipe, half: str) -> None:
        self.leave(half, str(await pipe.wait_ended()))

    async def _watch_silence(self, pipe: Pipe, half: str) -> None:
        """Leave a server that says nothing for the timeout, though something was asked.

        The time is counted in ticks of this loop: whoever was stopped itself does not take its own
        pause for the silence of the server.
        """
        silent, reads = 0, pipe.reads
        while silent < _TICKS:
            await trio.sleep(self._timeout / _TICKS)
            is_silent = pipe.waiting and pipe.reads == reads and not pipe.is_held
            silent = silent + 1 if is_silent else 0
            reads = pipe.reads
        self.leave(half, f"no answer within {self._timeout:g} s")

    async def _look(self, commands: Pipe, bus: Pipe) -> None:
        """Ask both connections something every few seconds, so that a silent end is found.

        A message of our own must come by the bus: a server may answer, and hand on nothing.
        """
        self._unheard = 0
        while True:
            await trio.sleep(_PING * (0.85 + 0.3 * random()))
            with suppress(Lost):  # Then the end is told already.
                bus.ask(_PING_COMMAND, ignore)
                commands.ask(_ROLE_COMMAND, self._told_role)
                self._owner.probe(self)
            self._unheard += not bus.is_held
            if self._unheard > _UNHEARD:
                self.leave("bus", "its own messages do not come back")

    async def _locate(self) -> None:
        """Leave a primary that most of those who know say is another one now.

        It may be cut off from them, and not from here.
        """
        assert self.address is not None
        while True:
            await trio.sleep(_LOCATE * (0.85 + 0.3 * random()))
            if await self._locator.has_moved(self.address):
                self.leave("role", "another server is the primary now")

    def _told_role(self, answer: object) -> None:
        if isinstance(answer, Lost):
            return  # Which is told already.
        try:
            _check_primary(answer)
        except Lost as error:
            self.leave("role", str(error))


def _check_primary(role: object) -> None:
    """Read the answer to ROLE.

    Raises:
        Lost: it is not a primary's.
    """
    if isinstance(role, Refused):
        raise Lost(str(role))
    if not isinstance(role, list) or not role or role[0] != b"master":
        raise Lost("the server is not a primary")
