"""The parts of several nodes on an engine in this process, on the mock clock."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from repeater.access.grants import Denial
from repeater.brokers.control import Member, Question
from repeater.cluster.opening import Cluster, open_cluster
from repeater.errors import BrokerError
from repeater.valkey.pipe import Lost
from repeater.valkey.url import Address
from tests.memory_network import Network, open_network
from tests.memory_sets import with_sets


class MemoryCluster:
    """An engine in this process, and the nodes that tests start on it."""

    def __init__(self, network: Network, nursery: trio.Nursery) -> None:
        self.network = network
        self.nursery = nursery
        self.nodes: list[MemoryNode] = []
        """Those that have started, also if they have ended."""
        self._started = 0
        self.unreachable: set[str] = set()
        """Nodes whose network is cut."""
        self.join_pause = 0.0
        """Seconds from the first look of a node at the denials until it becomes a member."""
        self.ahead = 0.0
        """Seconds by which the engine's clock was set forward."""
        self.settled: list[tuple[str, str]] = []
        """Duties that were done: which node was lost, and which one did it."""

    async def open(self, address: Address, greeting: object) -> trio.abc.Stream:
        """Connect, unless the node is cut off."""
        if address.host in self.unreachable:
            raise Lost("no route to the host")
        return await self.network.open(address, greeting)

    async def start(self, *, options: Callable[[], str] = str, name: str = "") -> MemoryNode:
        """Start another node; returns when it is a member."""
        self._started += 1
        node = MemoryNode(self, f"node{self._started}", options, name)
        await self.nursery.start(node.run)
        self.nodes.append(node)
        return node


class MemoryNode:
    """One node: its control and denials run, as inside a real node."""

    def __init__(
        self, cluster: MemoryCluster, name: str, options: Callable[[], str], called: str
    ) -> None:
        self.cluster = cluster
        self.name = name
        self._called = called or name
        self.parts: Cluster
        self.asked: list[str] = []
        self.denied: dict[tuple[str, str], Denial] = {}
        """The denials in force on this node."""
        self.returned = 0
        """How often it came back after it had been taken for lost."""
        self.duty_fails = False
        self.duty_lasts = 0.0
        """Seconds."""
        self.apply_lasts = 0.0
        """Seconds."""
        self.ended = trio.Event()
        self._options = options
        self._scope = trio.CancelScope()
        self._dies = False

    @property
    def id(self) -> str:
        return self.parts.control.me.id

    @property
    def knows(self) -> set[str]:
        """The names of all members that it knows."""
        return {one.name for one in self.parts.control.members()}

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        servers = self.cluster.network.servers(self.name)
        with self._scope:
            async with open_cluster(
                servers, name=self._called, options=self._options
            ) as self.parts:
                self.parts.members.at_loss(self._settle)
                self.parts.members.at_return(self._returned)
                for denial in await self.parts.denials.load():
                    self.denied[denial.key] = denial
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.parts.denials.run, self.apply)
                    await trio.sleep(self.cluster.join_pause)
                    await nursery.start(self.parts.control.run, self._carry_out)
                    task_status.started()
                    await trio.sleep_forever()
        self.ended.set()

    async def _carry_out(self, _asker: Member, question: Question) -> bytes:
        self.asked.append(question.method)
        if question.method == "wait":
            await trio.sleep_forever()
        return question.body + b" from " + self.name.encode()

    async def _settle(self, lost: Member) -> None:
        if self.duty_fails:
            raise BrokerError("not now")
        await trio.sleep(self.duty_lasts)
        self.cluster.settled.append((lost.name, self.name))

    def _returned(self) -> None:
        self.returned += 1

    async def apply(self, denial: Denial) -> None:
        """What `clients.denials` does with a change of another node."""
        await trio.sleep(self.apply_lasts)
        self._put(denial)

    def _put(self, denial: Denial) -> None:
        if denial.lifted:
            self.denied.pop(denial.key, None)
        else:
            self.denied[denial.key] = denial

    async def deny(self, denial: Denial) -> None:
        """What it does with a change of this node."""
        await self.parts.denials.save(denial)
        self._put(denial)

    def cut(self) -> None:
        """Cut it off from the engine."""
        self.cluster.unreachable.add(self.name)
        self.cluster.network.cut(self.name)

    def mend(self) -> None:
        """Let it reach the engine again."""
        self.cluster.unreachable.discard(self.name)

    async def leave(self) -> None:
        """End it in order."""
        self._scope.cancel("the node ends")
        await self.ended.wait()

    async def kill(self) -> None:
        """End it as by a kill -9: nothing that it says arrives any more."""
        self.cut()
        await self.leave()


@asynccontextmanager
async def open_memory_cluster(seed: int = 1) -> AsyncIterator[MemoryCluster]:
    """A cluster without nodes; those that are started end with the block."""
    async with open_network(random.Random(seed)) as network, trio.open_nursery() as nursery:
        cluster = MemoryCluster(with_sets(network), nursery)
        now = network.valkey._now
        network.valkey._now = lambda: now() + cluster.ahead
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("repeater.valkey.dial._open", cluster.open)
            yield cluster
            for node in cluster.nodes:
                await node.leave()
        nursery.cancel_scope.cancel()
