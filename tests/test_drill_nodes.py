"""The drills of several nodes pass, and notice nodes that lose or double events."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from tests.deadlines import PROCESS_STARTS
from tests.drill.cluster_faults import CLUSTER_FAULTS
from tests.drill.engine_faults import ENGINE_FAULTS, forked_kills
from tests.drill.engines import with_sentinels
from tests.drill.ledger import BrokenPromise
from tests.drill.load import Load
from tests.drill.node_faults import NODE_FAULTS, node_kills
from tests.drill.nodes import NodesDrill, NodesFault
from tests.drill.partitions import PARTITIONS
from tests.processes import starts_processes

pytestmark = pytest.mark.slow  # once is enough: nothing in it depends on the version of Python

_LIGHT = Load(channels=3, followers=6, calls=4, batches=0, streams=0, pause=0.005)


def drill(command: Sequence[str], rounds: int = 1) -> NodesDrill:
    """Kills of one of two nodes under some load."""
    return NodesDrill(NodesFault(node_kills, load=_LIGHT), rounds, 3_000, 1, [command])


def sabotaged(how: str) -> Sequence[str]:
    """Starts a node that breaks something."""
    return sys.executable, "-m", "tests.drill.sabotage", how, "serve"


@starts_processes
def test_nodes_whose_bus_loses_messages_lose_nothing() -> None:
    """They read what is missing."""
    assert " deliveries" in drill(sabotaged("deaf"), rounds=0).run()


@starts_processes
def test_nodes_that_lose_events_are_noticed() -> None:
    """As the drill of one server notices a server that does."""
    with pytest.RaisesGroup(BrokenPromise, allow_unwrapped=True, flatten_subgroups=True):
        drill(sabotaged("loss")).run()


@pytest.mark.timeout(5 * PROCESS_STARTS)
def test_nodes_that_cannot_tell_a_stream_from_its_fork_are_noticed() -> None:
    """The replica that was promoted lacked something, and numbered other events like that."""
    fault = NodesFault(forked_kills, with_sentinels, forks=True, load=_LIGHT)
    with pytest.RaisesGroup(BrokenPromise, allow_unwrapped=True, flatten_subgroups=True):
        NodesDrill(fault, 1, 3_000, 1, [sabotaged("blind")]).run()


def test_each_fault_of_several_nodes_has_its_name_and_says_what_it_is() -> None:
    """`just drill --list` shows both."""
    faults = (*NODE_FAULTS, *ENGINE_FAULTS, *CLUSTER_FAULTS, *PARTITIONS)
    assert len({one.name for one in faults}) == len(faults)
    assert all(one.make.__doc__ for one in faults)
