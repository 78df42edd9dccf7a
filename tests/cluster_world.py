"""Nodes on one engine in this process, random faults, and what is right once they have ended.

Members, presence and events are the real code, down to the client's bytes; the engine and the
network are `tests.memory_network`. A world is made from its seed alone, and is the same each time.

The promise: some time after the last fault, presence has each node's clients and nobody else, and
an application that follows docs/callbacks.md knows who is connected, and which channels have
subscribers. No event of a channel or of a lost node has another content under the same id.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import httpx
import msgspec
import pytest
import trio

from repeater.access.grants import Caller
from repeater.access.http_client import make_client
from repeater.backend.delivery import open_events
from repeater.backend.options import CallbackOptions
from repeater.brokers.control import Member, Question
from repeater.cluster import occupancy, presence
from repeater.cluster.events import ClusterEvents, open_cluster_events
from repeater.cluster.opening import open_cluster
from repeater.cluster.presence import ClusterPresence, open_cluster_presence
from repeater.errors import CONNECTION_CLOSED, UNSUBSCRIBED_EXPIRED, BrokerError
from repeater.publication import ClientInfo
from repeater.valkey.pipe import Lost
from repeater.valkey.url import Address
from tests.application import pieces
from tests.memory_network import Network, open_network
from tests.memory_presence import with_presence
from tests.worlds import run_life

CHANNELS: Final = ("a", "b", "c")
PAUSES: Final = (*[0.05, 0.3, 1.0, 3.0] * 5, 14.0, 20.0)
_STEPS: Final = 30
# A third of what they are, so that a world is shorter.
_LIFETIME: Final = 20.0
_RENEWAL: Final = 8.0
_SETTLING: Final = (
    55.0  # seconds: a dead node is lost after 10 to 26, and done with 30 later at most
)
_ALONE: Final = 25.0  # seconds between a loss of data and the death of a node: one fault at a time
_LATEST: Final = 3_000.0  # seconds after which a world that does not end is given up
_OPTIONS: Final = CallbackOptions(
    event_url="http://app.example/events", secret="s", event_delay=0.01, event_retry_max=2
)


class Application:
    """A back end as docs/callbacks.md describes it, for the nodes of one world."""

    def __init__(self) -> None:
        self.is_down = False
        self.online: dict[str, tuple[str, set[str]]] = {}
        """By connection its run, and its channels."""
        self.channels: dict[str, tuple[int, bool]] = {}
        """By channel the number of the last event, and whether it is occupied."""
        self.lost: set[str] = set()
        """The names of lost nodes."""
        self.told: Counter[str] = Counter()
        self._seen: dict[str, Any] = {}
        self._runs: dict[str, str] = {}
        self._ended: set[str] = set()

    @property
    def occupied(self) -> set[str]:
        return {channel for channel, (_, is_occupied) in self.channels.items() if is_occupied}

    def take(self, batch: Any) -> None:
        run, node = batch["run"], batch["node"]
        before = self._runs.get(node)
        if run != before and run not in self._ended:
            self._runs[node] = run
            if before is not None:
                self._end(before)
        for event in batch["events"]:
            known = self._seen.setdefault(event["id"], event)
            if known is not event:
                assert {**known, "time": 0} == {**event, "time": 0}, "one id, two events"
                continue
            self.told[event["event"]] += 1
            self._note(run, event)

    def _note(self, run: str, event: Any) -> None:
        match event["event"]:
            case "connected" if run not in self._ended:
                self.online[event["client"]] = run, set()
            case "disconnected":
                self.online.pop(event["client"], None)
            case "subscribed" if event["client"] in self.online and run not in self._ended:
                self.online[event["client"]][1].add(event["channel"])
            case "unsubscribed" if event["client"] in self.online and run not in self._ended:
                self.online[event["client"]][1].discard(event["channel"])
            case "node_lost":
                self.lost.add(event["node"])
                self._end(event["run"])
            case "channel_occupied" | "channel_vacated":
                channel, seq = event["channel"], event["seq"]
                if seq > self.channels.get(channel, (0, False))[0]:
                    self.channels[channel] = seq, event["event"] == "channel_occupied"

    def _end(self, run: str) -> None:
        self._ended.add(run)
        for client in [one for one, (its, _) in self.online.items() if its == run]:
            del self.online[client]


class WorldNode:
    """One node, with clients that are there only for presence and events."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.clients: dict[str, dict[str, ClientInfo]] = {}
        """By client its channels, with its info there."""
        self.ended = trio.Event()
        self.is_dead = False
        self._scope = trio.CancelScope()
        self._presence: ClusterPresence
        self._events: ClusterEvents

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        network = self.world.network
        with self._scope:
            async with (
                open_cluster(network.servers(self.name), name=self.name) as cluster,
                self._opened(cluster.members),
                trio.open_nursery() as nursery,
            ):
                await nursery.start(cluster.control.run, self._carry_out)
                task_status.started()
                await self.world.wait_forever(self)
        self.ended.set()

    @asynccontextmanager
    async def _opened(self, members: Any) -> AsyncIterator[None]:
        servers = self.world.network.servers(self.name)
        client = make_client(httpx.MockTransport(self._deliver))
        async with (
            open_cluster_presence(servers, members.me.id) as self._presence,
            client,
            open_events(_OPTIONS, client=client, node=self.name, run=members.me.id) as queue,
            open_cluster_events(queue, servers, members) as self._events,
        ):
            try:
                yield
            finally:
                if not self.is_dead:
                    with trio.CancelScope(shield=True):
                        for one in tuple(self.clients):
                            await self.disconnect(one)
                queue.shut_down_by(trio.current_time() + 3)

    async def _carry_out(self, _asker: Member, _question: Question) -> bytes:
        return b""

    async def _deliver(self, request: httpx.Request) -> httpx.Response:
        await trio.sleep(self.world.rnd.choice((0.0, 0.01, 0.2)))
        if self.is_dead or self.world.application.is_down:
            raise httpx.ConnectError("refused")
        body = await request.aread()
        self.world.application.take(json.loads(body))
        if self.world.rnd.random() < 0.1:
            raise httpx.ReadError("the answer is lost")
        return httpx.Response(204, content=pieces(b""))

    def _caller(self, client: str) -> Caller:
        return Caller(client=client, user=client[0], transport="websocket")

    async def connect(self, client: str) -> None:
        self.clients[client] = {}
        self._events.connected(self._caller(client))

    async def subscribe(self, client: str, channel: str) -> None:
        first = not self._holds(channel)
        info = ClientInfo(client[0], client, msgspec.Raw(b"%d" % self.world.rnd.randrange(9)))
        if first:
            self._events.channel_occupied(channel)
        self.clients[client][channel] = info
        try:
            with trio.fail_after(5):
                await self._presence.add(channel, info).wait()
        except (BrokerError, trio.TooSlowError):
            if self._has(client, channel, info):
                await self._leave(client, channel)
            return
        if self._has(client, channel, info):
            self._events.subscribed(self._caller(client), channel)

    def _has(self, client: str, channel: str, info: ClientInfo) -> bool:
        """Whether this subscription is there; meanwhile the client may have made a later one."""
        return self.clients.get(client, {}).get(channel) is info

    async def unsubscribe(self, client: str, channel: str) -> None:
        self._events.unsubscribed(self._caller(client), channel, UNSUBSCRIBED_EXPIRED)
        await self._leave(client, channel)

    async def _leave(self, client: str, channel: str) -> None:
        del self.clients[client][channel]
        if not self._holds(channel):
            self._events.channel_vacated(channel)
        with suppress(BrokerError):
            self._presence.remove(channel, client)

    async def disconnect(self, client: str) -> None:
        for channel in tuple(self.clients[client]):
            await self.unsubscribe(client, channel)
        del self.clients[client]
        self._events.disconnected(self._caller(client), CONNECTION_CLOSED)

    def _holds(self, channel: str) -> bool:
        return any(channel in channels for channels in self.clients.values())

    async def members(self, channel: str) -> dict[str, ClientInfo]:
        return dict(await self._presence.members(channel).wait())

    async def count(self, channel: str) -> tuple[int, int]:
        return await self._presence.count(channel).wait()

    @property
    def is_known(self) -> bool:
        """Whether the engine knows the node and its channels: else nobody could know its death."""
        occupancy = self._events._occupancy
        assert occupancy is not None
        lanes = occupancy._lanes.values()
        known: Any = self.world.network.valkey.data.get(b"repeater:nodes", ())
        return (
            not self._presence._servers.why(0)
            and all(lane.is_settled and not lane.in_doubt for lane in lanes)
            and self._events._me.id.encode() in known
        )

    async def leave(self) -> None:
        self._scope.cancel("the node ends")
        await self.ended.wait()

    async def kill(self) -> None:
        self.is_dead = True
        self.world.cut(self)
        await self.leave()


@asynccontextmanager
async def _patching() -> AsyncIterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


class World:
    """One world: what happens in it, and what holds at its end."""

    def __init__(self, seed: int) -> None:
        self.rnd = random.Random(seed)
        self.application = Application()
        self.network: Network
        self.happened: Counter[str] = Counter()
        self._nodes: list[WorldNode] = []
        self._started = self._named = 0
        self._died: set[str] = set()
        self._unreachable: set[str] = set()
        self._whole_since = self._stayed_until = 0.0
        self._nursery: trio.Nursery

    async def open(self, address: Address, greeting: object) -> trio.abc.Stream:
        """Connect, unless the node is cut off."""
        if address.host in self._unreachable:
            raise Lost("no route to the host")
        return await self.network.open(address, greeting)

    def cut(self, node: WorldNode) -> None:
        self._unreachable.add(node.name)
        self.network.cut(node.name)

    async def wait_forever(self, _node: WorldNode) -> None:
        await trio.sleep_forever()

    async def run(self) -> None:
        with trio.fail_after(_LATEST):
            # The patch ends before the network's own, which it is put over.
            async with (
                open_network(self.rnd) as network,
                _patching() as patch,
                trio.open_nursery() as nursery,
            ):
                self.network, self._nursery = with_presence(network), nursery
                patch.setattr("repeater.valkey.dial._open", self.open)
                patch.setattr("repeater.cluster.opening.random_id", lambda: f"id{self._started}")
                patch.setattr(presence, "LIFETIME", _LIFETIME)
                patch.setattr(presence, "_RENEWAL", _RENEWAL)
                patch.setattr(occupancy, "_LIFETIME", int(1_000 * _LIFETIME))
                patch.setattr(occupancy, "_RENEWAL", _RENEWAL)
                # Each connection looks for a silent server so often: 4 are a fifth of all passes.
                patch.setattr("repeater.valkey.primary._TICKS", 2)
                for _ in range(2):
                    await self._start()
                for _ in range(_STEPS):
                    await self._step()
                    await trio.sleep(self.rnd.choice(PAUSES))
                await self._heal()
                await trio.sleep(_SETTLING)
                await self._check()
                for node in self._nodes:
                    await node.leave()
                nursery.cancel_scope.cancel()
                network._nursery.cancel_scope.cancel()

    async def _start(self) -> None:
        self._started += 1
        node = WorldNode(self, f"node{self._started}")
        self._nodes.append(node)
        await self._nursery.start(node.run)

    async def _step(self) -> None:
        for _ in range(self.rnd.randrange(6)):
            self._nursery.start_soon(self._act, self.rnd.choice(self._nodes))
        name = self.rnd.choice(
            ("nothing",) * 8
            + ("cut", "mend", "mend", "down", "up", "pause", "resume", "flush")
            + ("fail_over", "evict", "kill", "leave", "start", "application")
        )
        if await getattr(self, f"_{name}" if name != "start" else "_start_one")():
            self.happened[name] += 1

    async def _act(self, node: WorldNode) -> None:
        """Something that a client does."""
        rnd, clients = self.rnd, node.clients
        if not clients or rnd.random() < 0.3:
            self._named += 1
            await node.connect(f"{rnd.choice('xyz')}{self._named}")
            return
        client, channel = rnd.choice(list(clients)), rnd.choice(CHANNELS)
        if rnd.random() < 0.15:
            await node.disconnect(client)
        elif channel in clients[client]:
            await node.unsubscribe(client, channel)
        else:
            await node.subscribe(client, channel)

    # What happens; each says whether it did.

    async def _nothing(self) -> bool:
        return True

    async def _cut(self) -> bool:
        self.cut(self.rnd.choice(self._nodes))
        return True

    async def _mend(self) -> bool:
        self._unreachable.clear()
        return True

    async def _down(self) -> bool:
        self.network.go_down()
        return True

    async def _up(self) -> bool:
        self.network.come_back()
        return True

    async def _pause(self) -> bool:
        self.network.pause()
        return True

    async def _resume(self) -> bool:
        self.network.resume()
        return True

    async def _flush(self) -> bool:
        self.network.valkey.flush_scripts()
        return True

    async def _fail_over(self) -> bool:
        """The replica takes over, mostly without the last writes."""
        lost = self.rnd.choice((0, 1, 5, 20))
        # One fault at a time: whoever told of what is lost is still there, and nobody is cut off.
        if (
            self._died <= self.application.lost
            and trio.current_time() > self._stayed_until
            and all(node.is_known for node in self._nodes)
        ):
            self._whole_since = trio.current_time() + _ALONE
        else:
            lost = 0
        self.network.fail_over(lost)
        return True

    async def _evict(self) -> bool:
        kinds = (b":pn:", b":pi:", b":pu:", b":oc:")
        keys = [key for key in self.network.valkey.data if any(kind in key for kind in kinds)]
        if not keys or not self._died <= self.application.lost:
            return False
        self._whole_since = trio.current_time() + _ALONE
        self.network.valkey.evict(self.rnd.choice(sorted(keys)))
        return True

    async def _kill(self) -> bool:
        if len(self._nodes) < 2 or trio.current_time() < self._whole_since:
            return False
        node = self.rnd.choice(self._nodes)
        if not node.is_known:
            return False
        self._nodes.remove(node)
        self._died.add(node.name)
        await node.kill()
        return True

    async def _leave(self) -> bool:
        if len(self._nodes) < 2:
            return False
        await self._heal()
        await trio.sleep(5)
        node = self._nodes.pop(self.rnd.randrange(len(self._nodes)))
        await node.leave()
        self._stayed_until = trio.current_time() + 60
        return True

    async def _start_one(self) -> bool:
        if len(self._nodes) > 3:
            return False
        await self._heal()
        await self._start()
        return True

    async def _application(self) -> bool:
        self.application.is_down = not self.application.is_down
        return True

    async def _heal(self) -> None:
        self.application.is_down = False
        self._unreachable = {one for one in self._unreachable if one not in self._alive()}
        self.network.resume()
        self.network.come_back()

    def _alive(self) -> set[str]:
        return {node.name for node in self._nodes}

    async def _check(self) -> None:
        connected = {
            client: set(channels)
            for node in self._nodes
            for client, channels in node.clients.items()
        }
        online = {client: channels for client, (_, channels) in self.application.online.items()}
        assert online == connected
        held = {channel for channels in connected.values() for channel in channels}
        assert self.application.occupied == held
        for channel in CHANNELS:
            there = {
                client: channels[channel]
                for node in self._nodes
                for client, channels in node.clients.items()
                if channel in channels
            }
            users = {info.user for info in there.values()}
            for node in self._nodes:
                assert await node.members(channel) == there
                assert await node.count(channel) == (len(there), len(users))
        self.happened.update(self.application.told)


def run_world(seed: int) -> World:
    """Let a world live; raises an `AssertionError` if the promise is broken."""
    world = World(seed)
    run_life(world.run, seed)
    return world


def sums(worlds: Iterable[World]) -> dict[str, int]:
    """What happened in some worlds, in all."""
    of: Counter[str] = Counter()
    for world in worlds:
        of["worlds"] += 1
        of.update(world.happened)
    return dict(of)


def first_failure(seeds: range) -> tuple[int, str] | None:
    """The first of some worlds in which the promise is broken, and how; None if it holds."""
    for seed in seeds:
        try:
            run_world(seed)
        except AssertionError as error:
            return seed, str(error)
    return None
