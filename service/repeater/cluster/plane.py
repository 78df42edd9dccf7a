"""Where all nodes meet: scripts on one server of the engine, and short messages by its bus.

The plane has connections of its own, so no flood of events delays a beat or a question, and no
full intake does. In a cluster it is the primary of one partition, which all nodes agree on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import trio

from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.valkey.dial import Waited
from repeater.valkey.pipe import Lost, Refused, packed

if TYPE_CHECKING:
    from repeater.valkey.pipe import Part
    from repeater.valkey.script import Script
    from repeater.valkey.servers import Servers

_log = get_logger("cluster")

_PARTITION: Final = 0
_AGAIN: Final = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "READONLY"})
"""Refusals after which nothing has happened, and a later try may succeed."""
_PAUSE: Final = 0.05  # seconds between two tries
_HEAR_AGAIN: Final = 2.0  # seconds after which a subscription that was refused is tried again

Heard = Callable[[bytes], None]
"""Takes one message. Never waits and never fails."""


class Plane(Protocol):
    """What members, control, denials and places need of the engine."""

    @property
    def publish(self) -> bytes:
        """The command by which a script sends a message: PUBLISH, or SPUBLISH in a cluster."""

    def name(self, *parts: str) -> bytes:
        """The name of a key or of a bus channel: all keys of the plane are on one server."""

    async def call(
        self, script: Script, keys: Sequence[bytes], arguments: Sequence[Part]
    ) -> object:
        """Run a script and return its answer. Cancelled, it may have run or not.

        Raises:
            BrokerError: the server is not there, refuses, or does not answer in time; the script
                may have run.
        """

    def tell(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Part]) -> None:
        """Run a script whose answer is not needed. Never waits; does nothing if there is no server.

        It runs behind what was asked before, unless the server has forgotten one of the scripts.
        """

    def send(self, channel: bytes, message: bytes) -> None:
        """Send a message to all that hear the channel now, this node too. Never waits.

        Raises:
            BrokerError: the server is not there, and nothing was sent.
        """

    def hear(self, channel: bytes, heard: Heard) -> None:
        """Have the messages of a channel heard. Called before `run`."""

    def at_up(self, told: Callable[[], None]) -> None:
        """Have a function called when the server is there and all channels are heard, each time.

        Messages may have been missed before. The function never waits and never fails.
        """

    def outage(self) -> str:
        """Why the server is not there, in a few words; empty if it is."""


class EnginePlane:
    """Implements `Plane` on servers that nothing else uses. Made by `open_plane`, which runs it."""

    def __init__(self, servers: Servers, *, prefix: str, timeout: float) -> None:
        """Take what the names begin with, and the seconds in which a script has to answer."""
        self._servers = servers
        self._begin = f"{prefix}:{servers.tag(_PARTITION)}"
        self._timeout = timeout
        self._takers: dict[bytes, Heard] = {}
        self._told: list[Callable[[], None]] = []
        self._subscribed = False
        self._unheard = ""
        self._quiet_until = 0.0
        servers.add(self)

    @property
    def publish(self) -> bytes:
        """See `Plane`."""
        return self._servers.publish

    def name(self, *parts: str) -> bytes:
        """See `Plane`."""
        return (self._begin + ":".join(parts)).encode(errors="surrogatepass")

    def hear(self, channel: bytes, heard: Heard) -> None:
        """See `Plane`."""
        self._takers[channel] = heard

    def at_up(self, told: Callable[[], None]) -> None:
        """See `Plane`."""
        self._told.append(told)

    def outage(self) -> str:
        """See `Plane`."""
        return self._servers.why(_PARTITION) or self._unheard

    async def run(self) -> None:
        """Keep the connections until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._servers.run)
            while True:
                await trio.sleep(_HEAR_AGAIN)
                if self._unheard and not self._servers.why(_PARTITION):
                    self.up((_PARTITION,))

    async def call(
        self, script: Script, keys: Sequence[bytes], arguments: Sequence[Part]
    ) -> object:
        """See `Plane`."""
        reason = f"no answer within {self._timeout:g} s"
        with trio.move_on_after(self._timeout):
            while True:
                try:
                    return await self._answer(script, keys, arguments)
                except Lost as error:
                    raise BrokerError(f"the engine is not there: {error}") from None
                except Refused as error:
                    reason = str(error)
                    if error.code not in _AGAIN:
                        break
                await trio.sleep(_PAUSE)
        raise BrokerError(f"the engine: {reason}")

    async def _answer(
        self, script: Script, keys: Sequence[bytes], arguments: Sequence[Part]
    ) -> object:
        waited = Waited()
        script.ask(self._ask, keys, arguments, waited.tell)
        return await waited.answer()

    def _ask(self, command: bytes, tell: Callable[[object], None]) -> None:
        self._servers.ask(_PARTITION, command, tell)

    def tell(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Part]) -> None:
        """See `Plane`."""
        try:
            script.ask(self._ask, keys, arguments, self._note_refusal)
        except Lost:
            return

    def send(self, channel: bytes, message: bytes) -> None:
        """See `Plane`."""
        try:
            self._ask(packed(self._servers.publish, channel, message), self._note_refusal)
        except Lost as error:
            raise BrokerError(f"the engine is not there: {error}") from None

    def _note_refusal(self, answer: object) -> None:
        """Log a refusal that nobody waits for: a server that is full refuses many."""
        if isinstance(answer, Refused) and trio.current_time() >= self._quiet_until:
            self._quiet_until = trio.current_time() + 1
            _log.warning("the engine refuses", reason=str(answer))

    # What the servers tell.

    def up(self, partitions: Sequence[int]) -> None:
        """Subscribe, the first time; later the servers do it before they tell."""
        if _PARTITION not in partitions:
            return
        if self._subscribed or not self._takers:
            self._confirmed(None)
            return
        try:
            self._servers.subscribe(_PARTITION, self._takers, self._confirmed)
        except Lost as error:
            self._confirmed(error)

    def _confirmed(self, answer: object) -> None:
        if answer is not None:
            if str(answer) != self._unheard:
                self._unheard = str(answer)
                _log.warning("the control plane does not hear", reason=self._unheard)
            return
        self._unheard = ""
        self._subscribed = True
        for told in self._told:
            told()

    def down(self, partitions: Sequence[int]) -> None:
        """Nothing: whoever waits for an answer is told by it."""

    async def wait_room(self) -> None:
        """Nothing here waits: each message is taken at once."""
