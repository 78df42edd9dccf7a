"""The worlds of `tests.valkey_world` with real nodes and clients that behave like SDKs.

A client keeps its position, comes back with it when it is told to, on whichever node, and repeats
what fails for a while. It complains where an SDK would go wrong: each publication of an epoch comes
once and in order, or the client is told that it was not recovered. At the end it is at the top of
the stream that the engine has.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import msgspec
import trio

from repeater.clients.session import Session
from repeater.errors import CONNECTION_CLOSED
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.valkey_world import CHANNELS, SimulatedNode, World

_NEVER: Final = 1e6  # Nobody answers pings here.
_AGAIN: Final = 0.3  # seconds until a client repeats what has failed
_TAKEN_FOR_LOST: Final = 5.0  # seconds until a client repeats what was not answered
_OPTIONS: Final = NodeOptions(
    channel=ChannelOptions(history_size=1, history_ttl=_NEVER, history_meta_ttl=_NEVER),
    ping_interval=_NEVER,
    pong_timeout=1,
    stale_timeout=_NEVER,
)


class _Place(msgspec.Struct):
    """What a client knows of one channel."""

    offset: int = 0
    epoch: str = ""
    known: bool = False
    subscribed: bool = False
    asked_at: float = -_NEVER
    tail: dict[int, bytes] = {}
    """By offset what it was told since it was told that something is missing."""


class Follower:
    """A client. Lives inside `ClientsWorld`."""

    def __init__(self, world: ClientsWorld, name: str) -> None:
        self.world = world
        self.name = name
        self.places = {channel: _Place() for channel in CHANNELS if CHANNELS[channel]}
        self.recovered = 0
        self.told = 0
        """How often it was told that something is missing."""
        self._asked: dict[int, str] = {}
        self._ids = 0
        self._transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
        self._read = 0
        self._say: Callable[[str], None] = lambda _command: None
        self.hang_up: Callable[[], None] = lambda: None
        """End the connection; the client comes back, to any node."""

    async def run(self) -> None:
        """Be connected, again and again."""
        while True:
            self._transport, self._read = MemoryTransport(CENTRIFUGE_JSON_ASGI), 0
            self._asked.clear()
            for place in self.places.values():
                place.subscribed, place.asked_at = False, -_NEVER
            node = await self.world.a_node()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._behave)
                await self._live(node)
                nursery.cancel_scope.cancel()
            self._take_in()
            await trio.sleep(_AGAIN)

    async def _live(self, node: Node) -> None:
        send, commands = trio.open_memory_channel[str](1_000)
        self._say = send.send_nowait
        async with connect(node, self._transport, ready=False) as client:
            self.hang_up = lambda: client.disconnect(CONNECTION_CLOSED)
            session = Session(node, client)
            self._ask(connect={})
            async for command in commands:
                await session.receive(command)

    async def _behave(self) -> None:
        while True:
            await trio.sleep(_AGAIN)
            self._take_in()
            late = trio.current_time() - _TAKEN_FOR_LOST
            for channel, place in self.places.items():
                if not place.subscribed and place.asked_at < late:
                    place.asked_at = trio.current_time()
                    request: dict[str, Any] = {"positioned": True, "recoverable": True}
                    if place.known:
                        request |= {"recover": True, "offset": place.offset, "epoch": place.epoch}
                    number = self._ask(subscribe={"channel": channel, **request})
                    self._asked[number] = channel

    def _ask(self, **method: Any) -> int:
        self._ids += 1
        self._say(json.dumps({"id": self._ids, **method}))
        return self._ids

    def _take_in(self) -> None:
        """Read everything that has arrived."""
        while self._read < len(self._transport.sent):
            message = json.loads(self._transport.sent[self._read])
            self._read += 1
            if "push" in message:
                self._pushed(message["push"])
            elif "error" in message:
                assert message["error"]["code"] == 100, f"{self.name}: {message}"
                assert message["error"]["temporary"]
                self.places[self._asked.pop(message["id"])].asked_at = -_NEVER
            elif "subscribe" in message:
                self._subscribed(self._asked.pop(message["id"]), message["subscribe"])

    def _subscribed(self, channel: str, result: dict[str, Any]) -> None:
        place = self.places[channel]
        place.subscribed = True
        if result.get("recovered"):
            self.recovered += 1
            assert (result.get("offset", 0), result["epoch"]) == (place.offset, place.epoch)
        else:
            self.told += place.known
            place.offset, place.epoch = result.get("offset", 0), result["epoch"]
            place.known, place.tail = True, {}
        for publication in result.get("publications", ()):
            self._published(channel, publication)

    def _pushed(self, push: dict[str, Any]) -> None:
        channel = push["channel"]
        place = self.places[channel]
        if "unsubscribe" in push:
            assert push["unsubscribe"]["code"] == 2500
            place.subscribed, place.asked_at = False, -_NEVER
        elif "pub" in push and push["pub"].get("offset"):
            assert place.subscribed, f"{self.name}, {channel}: a publication before the reply"
            self._published(channel, push["pub"])

    def _published(self, channel: str, publication: dict[str, Any]) -> None:
        place, offset = self.places[channel], publication["offset"]
        where = f"{self.name}, {channel}"
        assert offset == place.offset + 1, f"{where}: {offset} after {place.offset}"
        place.offset = offset
        place.tail[offset] = b"%d" % publication["data"]


class ServingNode(SimulatedNode):
    """A node with clients on it."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.node: Node | None = None
        self.serves = trio.Event()

    async def run(self) -> None:
        async with open_test_node(_OPTIONS, broker=self.broker) as self.node:
            self.serves.set()
            await trio.sleep_forever()

    def hold(self, channel: str) -> None:
        """Nothing: clients have channels held."""


class ClientsWorld(World):
    """Two nodes with four clients, which come and go."""

    make_node = ServingNode

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.clients = [Follower(self, f"client {number}") for number in range(4)]

    async def a_node(self) -> Node:
        """One of the nodes, as soon as it runs."""
        chosen = self.rnd.choice(self.nodes)
        assert isinstance(chosen, ServingNode)
        await chosen.serves.wait()
        assert chosen.node is not None
        return chosen.node

    def start(self, nursery: trio.Nursery) -> None:
        """Have the clients connect."""
        for client in self.clients:
            nursery.start_soon(client.run)

    def come_and_go(self) -> None:
        """A client's connection ends; it comes back, to any node."""
        self.rnd.choice(self.clients).hang_up()

    def check(self) -> None:
        """Each client is at the top of the stream that the engine has, and was told this stream."""
        super().check()
        for client in self.clients:
            client._take_in()
            self.handed_on += sum(len(place.tail) for place in client.places.values())
            self.ruptures += client.told
            for channel, place in client.places.items():
                top, entries = self.stream(channel)
                where = f"{client.name}, {channel}"
                assert place.subscribed, where
                at = (place.offset, place.epoch)
                # A stream that was forgotten before its first publication: the first one tells.
                assert at == top or top[0] == at[0] == 0, f"{where}: at {at}, the top is {top}"
                for offset, data in place.tail.items():
                    kept = entries.get(offset, data)
                    assert kept == data, f"{where}: {offset} was {data!r}, and is {kept!r}"
