"""One primary is the whole engine: it is at one address, or Sentinels know where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from repeater.log import get_logger
from repeater.valkey.pipe import Lost, Refused, Tell, packed
from repeater.valkey.primary import Primary
from repeater.valkey.servers import ServersStatistics
from repeater.valkey.subscriptions import Subscriptions, Taker, alive_channel

if TYPE_CHECKING:
    from repeater.valkey.dial import Greeting
    from repeater.valkey.sentinel import Locator
    from repeater.valkey.servers import Listener

_log = get_logger("engine")

_ALL: Final = (0,)  # the partitions


class _Verbs(NamedTuple):
    """The names of what a bus does."""

    publish: str
    subscribe: str
    unsubscribe: str
    message: bytes


_PLAIN: Final = _Verbs("PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE", b"message")
_SHARDED: Final = _Verbs("SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE", b"smessage")


class SinglePrimary:
    """The `Servers` of one primary. Made by `open_servers`; the engine's nursery runs `run`."""

    partitions = 1

    def __init__(
        self,
        locator: Locator,
        greeting: Greeting,
        *,
        prefix: str,
        timeout: float,
        sharded: bool = False,
    ) -> None:
        """Find the primary by `locator`; with `sharded` channels, as in a cluster."""
        verbs = _SHARDED if sharded else _PLAIN
        self.publish, self._message = verbs.publish.encode(), verbs.message
        self._primary = Primary(locator, greeting, self, timeout=timeout)
        self._subscriptions = Subscriptions(verbs.subscribe, verbs.unsubscribe)
        self._listeners: list[Listener] = []
        alive = alive_channel(prefix, "")
        self._probe = packed(self.publish, alive, "")
        self._subscriptions.takers[alive] = lambda _payload: self._primary.heard()
        self._is_up = False

    def partition_of(self, channel: str) -> int:
        """The only one."""
        return 0

    def tag(self, partition: int) -> str:
        """Nothing."""
        return ""

    def ask(self, partition: int, command: bytes, tell: Tell) -> None:
        """See `Servers`."""
        self._check_up()
        self._primary.commands.ask(command, tell)

    def ask_bus(self, partition: int, command: bytes, tell: Tell) -> None:
        """See `Servers`."""
        self._check_up()
        self._primary.bus.ask(command, tell)

    def subscribe(self, partition: int, takers: Mapping[bytes, Taker], tell: Tell) -> None:
        """See `Servers`."""
        self._check_up()
        self._subscriptions.add(self._primary.bus, takers, tell)

    def unsubscribe(self, partition: int, channels: Sequence[bytes]) -> None:
        """See `Servers`."""
        self._subscriptions.remove(self._primary if self._is_up else None, channels)

    def add(self, listener: Listener) -> None:
        """See `Servers`."""
        self._listeners.append(listener)

    def why(self, partition: int) -> str:
        """See `Servers`."""
        return "" if self._is_up else self._primary.why

    def outage(self) -> str:
        """See `Servers`."""
        return self.why(0)

    def statistics(self) -> ServersStatistics:
        """See `Servers`."""
        return ServersStatistics(1, int(self._is_up), dict(self._primary.losses))

    async def run(self) -> None:
        """See `Servers`."""
        await self._primary.run()

    def connected(self, primary: Primary) -> None:
        """Subscribe to everything again; then the engine is up."""
        self._subscriptions.add_again(primary.bus, self._confirmed)

    def disconnected(self, primary: Primary) -> None:
        """The engine is down."""
        if self._is_up:
            self._is_up = False
            for listener in self._listeners:
                listener.down(_ALL)

    def probe(self, primary: Primary) -> None:
        """Send a message to ourselves."""
        primary.commands.ask(self._probe, self._told_probe)

    def push(self, message: list[object]) -> None:
        """Give a message to its taker; what was unsubscribed from meanwhile has none."""
        if len(message) != 3 or message[0] != self._message:
            return
        _, channel, payload = message
        if type(channel) is bytes and type(payload) is bytes:  # as they always are
            taker = self._subscriptions.takers.get(channel)
            if taker is not None:
                taker(payload)

    async def wait_room(self) -> None:
        """Wait for all listeners, one after the other: no deadline, fan-out sets the pace."""
        for listener in self._listeners:
            await listener.wait_room()

    def _told_probe(self, answer: object) -> None:
        if isinstance(answer, Refused):
            self._primary.leave("bus", str(answer))

    def _confirmed(self, answer: object) -> None:
        if answer is not None:
            self._primary.leave("bus", str(answer))
            return
        if not self._primary.confirm():
            return
        self._is_up = True
        for listener in self._listeners:
            listener.up(_ALL)

    def _check_up(self) -> None:
        if not self._is_up:
            raise Lost(self.why(0))
