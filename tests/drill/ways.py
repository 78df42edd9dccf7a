"""Subscribers of every way in on several nodes, which fail one after the other.

Each connection goes to any node, and so does each request of the SDKs' emulation. Few events are
published, one at a time, so it is known what each subscriber must get. The engine keeps them all:
nobody may be told of a loss.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import trio

from tests.drill.drill import CHANNELS, RATE, Audience
from tests.drill.engines import Engine, single
from tests.drill.ledger import Ledger
from tests.drill.network import Network
from tests.drill.nodes import node_on, start_nodes, wait_ended
from tests.drill.target import KEPT, Publisher, Target
from tests.valkeys import VALKEY

_NODES = 2


@dataclass(frozen=True)
class WaysDrill:
    """Any fault of a node or of its connections to the engine, for a while.

    It is one drill of all faults, since most of its time goes into starting nodes.
    """

    seconds: float
    seed: int
    commands: Sequence[Sequence[str]]
    name = "nodes"

    def run(self) -> str:
        """What was checked, in one line.

        Raises:
            BrokenPromise: alone or in a group.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with single()(folder, VALKEY) as engine:
                return trio.run(self._run, folder, engine)

    async def _run(self, folder: Path, engine: Engine) -> str:
        rng, ledger = Random(f"{self.seed}:{self.name}"), Ledger(KEPT)
        targets = [
            node_on(engine, number, folder, self.commands[number % len(self.commands)])
            for number in range(_NODES)
        ]
        network = Network(targets[0].host, targets[0].port, rng)
        network.addresses = [(one.host, one.port) for one in targets]
        publishers = [
            Publisher(channel, targets[number % _NODES], ledger, RATE)
            for number, channel in enumerate(CHANNELS)
        ]
        async with trio.open_nursery() as nursery:
            await start_nodes(targets, nursery)
            audience = Audience(rng, network, ledger, publishers)
            await audience.run(self.seconds, partial(_fail, rng, targets, engine, network))
            for publisher in publishers:
                await publisher.aclose()
            growth = await wait_ended(targets)
            nursery.cancel_scope.cancel()
        counts = ", ".join(f"{count} {name}" for name, count in ledger.counts.items())
        return f"{counts}, {growth / 2**20:+.1f} MiB"


async def _fail(rng: Random, targets: Sequence[Target], engine: Engine, network: Network) -> None:
    """One fault; before it some subscribers are cut off."""
    for line in network.some(0.3):
        line.reset()
    node = rng.choice(targets)
    match rng.choice(("kill", "term", "stop", "cut", "cut", "flush", "nothing")):
        case "kill":
            await node.restart(signal.SIGKILL)
        case "term":
            await node.restart(signal.SIGTERM)
        case "stop":
            node.send(signal.SIGSTOP)
            await trio.sleep(rng.uniform(0.5, 4))
            node.send(signal.SIGCONT)
        case "cut":
            engine.server.call("CLIENT", "KILL", "TYPE", rng.choice(("normal", "pubsub")))
        case "flush":
            engine.server.call("SCRIPT", "FLUSH")
    await trio.sleep(rng.uniform(0.2, 2))
