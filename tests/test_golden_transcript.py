"""The protocol's golden transcript against a session: golden_transcript.txt, scene by scene.

The server of the transcript was in a certain state; the actions below, named by the lines D, put
ours into the same one, so that its answers can be compared literally.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant, SubscriptionGrant
from repeater.brokers.memory import MemoryBroker
from repeater.clients.client import Client
from repeater.clients.commands import connect as connect_command
from repeater.clients.session import Session
from repeater.errors import NOT_AVAILABLE
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.publication import ClientInfo, Publication
from repeater.testing import MemoryTransport, connect

pytestmark = pytest.mark.usefixtures("announced_at_once")

OPTIONS = NodeOptions(
    private_prefix="denied",  # The channel of this name needs a token, which nobody has.
    channel=ChannelOptions(
        presence=True,
        join_leave=True,
        allow_positioning=True,
        allow_recovery=True,
        allowed_delta_types=frozenset({"fossil"}),
        allow_subscribe_for_client=True,
        allow_publish_for_client=True,
        allow_presence_for_client=True,
        allow_history_for_client=True,
    ),
)
CLIENT = "3d8b9030-66ba-423f-9e83-ad27375f400e"
C1 = ClientInfo("42", "c1")


def read_scenes() -> dict[str, list[tuple[str, str]]]:
    """The lines of each scene: who speaks, and what."""
    scenes: dict[str, list[tuple[str, str]]] = {}
    text = (Path(__file__).parent / "golden_transcript.txt").read_text()
    for scene in text.split("\n== ")[1:]:
        name, *lines = scene.splitlines()
        spoken = [line.partition(" ") for line in lines if line and not line.startswith("#")]
        scenes[name] = [(who.rstrip("*"), what) for who, _, what in spoken]
    return scenes


SCENES = read_scenes()


class Stage:
    """One client of the transcript, and everybody it tells of. Lives inside `staged`."""

    def __init__(self, node: Node, client: Client, transport: MemoryTransport) -> None:
        self.node = node
        self.transport = transport
        self.guests = AsyncExitStack()
        self.client = client
        self._session = Session(node, client)
        self._seen = 0
        self._actions: dict[str, Callable[[], Awaitable[None]]] = {
            "connected": self._connected,
            "news is at 5": partial(self._reach, "news", 5, "xyz"),
            "srv is at 3": partial(self._reach, "srv", 3, "e1"),
            "delta is at 5": partial(self._reach, "delta", 5, "xyz"),
            "news has the publication 1": self._one_publication,
            "c1 joins": partial(self._guest, "c1"),
            "c1 leaves": self._guests_leave,
            "c1 is there": partial(self._guest, "c1", b'{"n":1}'),
            "c2 is there": partial(self._guest, "c2"),
            "c7 publishes": self._c7_publishes,
            "a publication is lost": self._a_publication_is_lost,
            "n 7 is published": partial(self._publish, "news", b'{"n":7}'),
            "a ping is due": self._a_ping_is_due,
            "two versions are published": self._two_versions,
            "it is closed with 3508": self._is_not_available,
        }

    async def act(self, action: str) -> None:
        await self._actions[action]()

    async def say(self, line: str) -> None:
        await self._session.receive(line.replace("\\n{", "\n{"))

    async def heard(self) -> Any:
        """The next message; waits for whatever is under way, and for nothing else."""
        await wait_all_tasks_blocked()
        assert self._seen < len(self.transport.sent), "nothing more was said"
        self._seen += 1
        return json.loads(self.transport.sent[self._seen - 1])

    async def nothing_more(self) -> None:
        await wait_all_tasks_blocked()
        assert self.transport.sent[self._seen :] == []

    async def _connected(self) -> None:
        await self.say('{"connect":{"name":"js"},"id":1}')
        self._seen = len(self.transport.sent)

    async def _publish(self, channel: str, data: bytes, **fields: Any) -> None:
        await self.node.publish(Publication(channel, data, **fields))

    async def _reach(self, channel: str, offset: int, epoch: str) -> None:
        """Bring a stream to its position in the transcript."""
        assert isinstance(self.node.broker, MemoryBroker)
        self.node.broker._streams._begin(channel, epoch, OPTIONS.channel)
        for number in range(1, offset + 1):
            await self._publish(channel, b"%d" % number)
        await wait_all_tasks_blocked()

    async def _one_publication(self) -> None:
        await self._reach("news", 1, "xyz")

    async def _guest(self, name: str, info: bytes = b"") -> None:
        """Somebody else of user 42, who subscribes."""
        transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
        guest = await self.guests.enter_async_context(connect(self.node, transport, ready=False))
        guest._id, guest.grant = name, ConnectionGrant(user="42", info=info)
        await Session(self.node, guest).receive(
            '{"connect":{},"id":1}\n{"subscribe":{"channel":"news"},"id":2}'
        )

    async def _guests_leave(self) -> None:
        await self.guests.aclose()

    async def _c7_publishes(self) -> None:
        await self._publish("news", b'{"n":6}', tags={"k": "v"}, info=ClientInfo("7", "c7"))

    async def _a_publication_is_lost(self) -> None:
        """Fan-out is handed one that is not the next, as by a broker that lost some."""
        self.node._intake.put_nowait(Publication("news", b"9", offset=9, epoch="xyz"))

    async def _a_ping_is_due(self) -> None:
        await trio.sleep_until(self.client._ping_at + 1)  # The sweep comes once a second.

    async def _two_versions(self) -> None:
        for count in (1, 2):
            data = b'{"title":"hello world","count":%d}' % count
            await self._publish("delta", data, delta=True)

    async def _is_not_available(self) -> None:
        assert self.client.end == NOT_AVAILABLE


@asynccontextmanager
async def staged(scene: str) -> AsyncIterator[Stage]:
    channels = {"srv": SubscriptionGrant()} if scene in ("start", "reconnect") else {}
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with open_node(OPTIONS) as node, connect(node, transport, ready=False) as client:
        client._id, client.grant = CLIENT, ConnectionGrant(user="7", channels=channels)
        stage = Stage(node, client, transport)
        async with stage.guests:
            yield stage


@pytest.mark.parametrize("scene", SCENES)
async def test_the_scene_is_played(
    scene: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of the client is answered by the lines of the transcript, and by no other."""
    monkeypatch.setattr(connect_command, "__version__", "0.0.0")
    async with staged(scene) as stage:
        for who, what in SCENES[scene]:
            if who == "C":
                await stage.say(what)
            elif who == "S":
                assert await stage.heard() == msgspec.json.decode(what)
            else:
                await stage.act(what)
        await stage.nothing_more()
