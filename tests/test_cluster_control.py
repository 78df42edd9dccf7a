"""The control plane of a cluster, on real servers and on one in memory with a mock clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from repeater.brokers.control import Supervision
from repeater.testing import check_control
from repeater.testing.control_bench import Controls
from tests.clusters import open_clusters
from tests.valkeys import Program, each_program, valkey


@each_program
async def test_a_cluster_keeps_the_contract_of_a_control(program: Program) -> None:
    """Nodes that are members by a real server ask each other as members of one process do."""
    numbers = count()
    with valkey(program) as server:

        @asynccontextmanager
        async def opened(many: int, _supervision: Supervision) -> AsyncIterator[Controls]:
            prefix = f"rule{next(numbers)}"
            async with open_clusters(server, many, prefix=prefix) as nodes:
                yield [node.control for node in nodes], None

        await check_control(opened, most=3, has_server=False)
