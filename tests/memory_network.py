"""A Valkey in this process and the network before it: what is sent is late, and connections end.

Everything from the bytes on is the real client: only the socket is another one. The bus can lose,
double and delay messages, which a real one does not do within a connection: the follower trusts
none.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import hiredis
import pytest
import trio

from repeater.valkey.opening import open_servers
from repeater.valkey.pipe import Lost, Refused
from repeater.valkey.servers import Servers
from repeater.valkey.url import Address, parse_url
from tests.memory_streams import Bytes, ClientStream
from tests.memory_valkey import MemoryValkey

_START: Final = 1_700_000_000.0  # Unix time at which Trio's clock is 0


class Push(NamedTuple):
    """What nobody asked for."""

    words: list[object]


class Fates(NamedTuple):
    """How likely it is that something happens to a message of the bus."""

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0


class Network:
    """One primary with its replica, and all connections to it. Lives inside `open_network`."""

    def __init__(self, nursery: trio.Nursery, rnd: random.Random) -> None:
        self._nursery = nursery
        self._rnd = rnd
        self._connections: dict[_Connection, None] = {}
        self._subscribed: dict[bytes, dict[_Connection, None]] = {}
        self._goes = trio.Event()
        self._goes.set()
        self.valkey = MemoryValkey(lambda: _START + trio.current_time(), self._publish)
        self.fates = Fates()
        self.log: list[tuple[bytes, bytes]] = []
        """What was published, in its order: bus channel and payload."""
        self.is_down = False
        """Whether nobody can connect."""
        self.denied: set[bytes] = set()
        """Channels of the bus that nobody may subscribe to."""
        self.subscriptions: list[bytes] = []
        """The channels that somebody has subscribed to, in their order."""

    def servers(self, name: str, timeout: float = 2.0) -> Servers:
        """The engine's client for one node, which runs it."""
        return open_servers([parse_url(f"valkey://{name}")], timeout=timeout)

    # -- what happens to it

    def cut(self, name: str) -> None:
        """End all connections of one node."""
        for one in [one for one in self._connections if one.name == name]:
            one.close()

    def go_down(self) -> None:
        """End all connections, and let nobody connect."""
        self.is_down = True
        for one in [*self._connections]:
            one.close()

    def come_back(self) -> None:
        """Let everybody connect again."""
        self.is_down = False

    def fail_over(self, lost: int) -> None:
        """Let the replica take over, without the last so many writes."""
        self.valkey.promote(lost)
        for one in [*self._connections]:
            one.close()

    def pause(self) -> None:
        """Answer nothing, and read nothing."""
        self._goes = trio.Event()

    def resume(self) -> None:
        """Go on."""
        self._goes.set()

    # -- connections

    async def open(self, address: Address, _greeting: object) -> trio.abc.Stream:
        """Connect, in place of `dial._open`."""
        await trio.sleep(self.lag())
        if self.is_down:
            raise Lost("connection refused")
        connection = _Connection(self, address.host)
        self._connections[connection] = None
        self._nursery.start_soon(connection.run)
        return ClientStream(connection.requests, connection.answers)

    def lag(self) -> float:
        """How long something takes: mostly little."""
        return self._rnd.choice((0.0003, 0.001, 0.004, 0.03))

    async def wait_running(self) -> None:
        if not self._goes.is_set():
            await self._goes.wait()

    def forget(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)
        for some in self._subscribed.values():
            some.pop(connection, None)

    def listeners(self, channel: bytes) -> int:
        """How many connections are subscribed to a channel of the bus."""
        return len(self._subscribed.get(channel, ()))

    def subscribe(self, channel: bytes, connection: _Connection) -> None:
        self.subscriptions.append(channel)
        self._subscribed.setdefault(channel, {})[connection] = None

    def unsubscribe(self, channel: bytes, connection: _Connection) -> None:
        self._subscribed.get(channel, {}).pop(connection, None)

    def publish(self, channel: bytes, payload: bytes) -> None:
        """Publish what comes from a stranger."""
        self._publish(channel, payload)
        self.log.pop()

    def _publish(self, channel: bytes, payload: bytes) -> int:
        self.log.append((channel, payload))
        connections = [*self._subscribed.get(channel, ())]
        message = _bytes_of(Push([b"message", channel, payload]))
        for one in connections:
            fate, rnd = self.fates, self._rnd
            if rnd.random() < fate.lost:
                continue
            if rnd.random() < fate.late:
                self._nursery.start_soon(one.send_late, message, rnd.uniform(0, 0.3))
                if rnd.random() >= fate.doubled:
                    continue
            one.send(message)
        return len(connections)


class _Connection:
    """The server's end of one connection."""

    def __init__(self, network: Network, name: str) -> None:
        self._network = network
        self._out: list[bytes] = []
        self._came = trio.lowlevel.ParkingLot()
        self._closed = False
        self._scope = trio.CancelScope()
        self.name = name
        self.requests = Bytes()
        self.answers = Bytes()

    async def run(self) -> None:
        with self._scope:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read()
                    nursery.cancel_scope.cancel()
            except* trio.BrokenResourceError:
                pass
        self.close()

    def close(self) -> None:
        """End it at once: what is under way is lost."""
        self._closed = True
        self._scope.cancel()
        self._network.forget(self)
        self.requests.close()
        self.answers.close()

    def send(self, data: bytes) -> None:
        self._out.append(data)
        self._came.unpark()

    async def send_late(self, data: bytes, seconds: float) -> None:
        await trio.sleep(seconds)
        self.send(data)

    async def _write(self) -> None:
        while True:
            while not self._out:
                await self._came.park()
            data = b"".join(self._out)
            self._out.clear()
            await trio.sleep(self._network.lag())
            self.answers.put(data)

    async def _read(self) -> None:
        reader = hiredis.Reader(notEnoughData=b"more")
        while data := await self.requests.take():
            await trio.sleep(self._network.lag())
            await self._network.wait_running()
            reader.feed(data)
            while (words := reader.gets()) != b"more":
                assert isinstance(words, list)
                self._take(words)

    def _take(self, words: list[bytes]) -> None:
        match words[0].upper():
            case b"HELLO":
                self.send(b"%1\r\n+proto\r\n:3\r\n")
            case b"ROLE":
                self.send(_bytes_of([b"master", 0, []]))
            case b"SUBSCRIBE" if self._network.denied & {*words[1:]}:
                self.send(_bytes_of(Refused("NOPERM No permissions to access a channel")))
            case b"SUBSCRIBE":
                for number, channel in enumerate(words[1:], 1):
                    self._network.subscribe(channel, self)
                    self.send(_bytes_of(Push([b"subscribe", channel, number])))
            case b"UNSUBSCRIBE":
                for channel in words[1:]:
                    self._network.unsubscribe(channel, self)
                    self.send(_bytes_of(Push([b"unsubscribe", channel, 0])))
            case _:
                answer = self._network.valkey.run(words)
                self.send(_bytes_of(answer))


def _bytes_of(value: object) -> bytes:
    """As RESP3 has it."""
    match value:
        case None:
            return b"_\r\n"
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case int():
            return b":%d\r\n" % value
        case Refused():
            return b"-%b\r\n" % str(value).encode()
        case Push():
            return b">%d\r\n%b" % (len(value.words), b"".join(map(_bytes_of, value.words)))
        case dict():
            parts = [part for pair in value.items() for part in pair]
            return b"%%%d\r\n%b" % (len(value), b"".join(map(_bytes_of, parts)))
        case list():
            return b"*%d\r\n%b" % (len(value), b"".join(map(_bytes_of, value)))
    raise AssertionError(f"no answer: {value!r}")


@asynccontextmanager
async def open_network(rnd: random.Random) -> AsyncIterator[Network]:
    """A network for the time of a block; its servers' clients end before."""
    with pytest.MonkeyPatch.context() as patch:
        async with trio.open_nursery() as nursery:
            network = Network(nursery, rnd)
            patch.setattr("repeater.valkey.dial._open", network.open)
            yield network
            nursery.cancel_scope.cancel()
