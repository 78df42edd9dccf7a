"""Reconnect storm over two nodes: one is killed, and all of its clients recover on the other.

Both use one Valkey server. The other node had none of the channels, so it subscribes to them and
reads what was missed. Beside it, the storm of one node that keeps its history in memory, to which
its clients come back themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from benchmarks.generator.herd import Herd
from benchmarks.generator.publishers import Publisher
from benchmarks.model import Turn
from benchmarks.peers.engines import MEMORY, ON_VALKEY, node_beside
from benchmarks.peers.peer import Peer
from benchmarks.servers import Child, running, started
from benchmarks.workloads.calls import CHANNELS
from benchmarks.workloads.storm import (
    AT_ONCE,
    CLIENTS,
    METRICS,
    PATIENCE,
    come_back,
    event_mark,
    greeting,
    publish,
    storm,
)
from benchmarks.workloads.storm_judge import BEFORE, MISSED, epoch_of
from benchmarks.workloads.workload import Workload

# All come from one address, more of them at once than a stranger may.
_LIMITS: Final = {
    "REPEATER_LIMITS__PENDING_CONNECTIONS": "20000",
    "REPEATER_LIMITS__PENDING_PER_ADDRESS": "20000",
}


def storm_of_two(peer: Peer, *, clients: int, channels: Sequence[str]) -> Turn:
    """One turn; a peer without an engine has one node."""
    settings = {**peer.settings(), **_LIMITS}
    peer = msgspec.structs.replace(peer, settings=lambda: settings)
    if peer.name != ON_VALKEY.name:
        return storm(peer, clients=clients, channels=channels)
    names = [channels[number % len(channels)] for number in range(clients)]
    with (
        started(peer) as child,
        _other_node(peer, child) as dying,
        Herd(dying.port) as herd,
    ):
        herd.come([greeting(name) for name in names], at_once=AT_ONCE)
        epochs = dict(zip(names, map(epoch_of, herd.received()), strict=True))
        # Not before: the server closes a connection on which nothing is asked for some seconds.
        with contextlib.closing(Publisher(child.port, peer.entry(channels))) as publisher:
            herd.watch(publisher)
            publish(publisher, 0, BEFORE)
            herd.wait_for(event_mark(BEFORE - 1), PATIENCE)
            dying.kill()
            herd.vanish()
            publish(publisher, BEFORE, MISSED)
            herd.go_to(child.port)
            returning = [greeting(name, epochs[name]) for name in names]
            return come_back(child, herd, publisher, returning)


@contextlib.contextmanager
def _other_node(peer: Peer, child: Child) -> Iterator[Child]:
    """A second node on the engine of the first."""
    command, settings = node_beside(child.pids()[1])
    with running(command, {**peer.settings(), **settings}) as node:
        yield node


WORKLOADS: Final = (
    Workload(
        name="valkey-storm",
        title="Reconnect storm, on the other node",
        description=f"{CLIENTS:,} clients on {len(CHANNELS)} channels; their node is killed, they "
        f"miss {MISSED} events, and come at once to the other node, which has none of the channels "
        "yet. CPU and memory are those of this node and of Valkey. With memory they come back to "
        "the same node, which was not killed.",
        group="Valkey",
        measure=lambda peer, plan: storm_of_two(
            peer, clients=plan.of(CLIENTS, 1_000), channels=CHANNELS
        ),
        metrics=METRICS,
        only=(MEMORY.name, ON_VALKEY.name),
        apart=True,
    ),
)
