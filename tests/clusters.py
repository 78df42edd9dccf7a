"""The parts of a cluster for tests: several nodes on one real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from repeater.cluster.opening import Cluster, open_cluster
from repeater.valkey.opening import open_servers
from repeater.valkey.url import parse_url


@asynccontextmanager
async def open_clusters(
    url: str, count: int, *, prefix: str = "repeater"
) -> AsyncIterator[list[Cluster]]:
    """So many nodes' parts. Controls do not run yet."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                open_cluster(open_servers([parse_url(url)], prefix=prefix), prefix=prefix)
            )
            for _ in range(count)
        ]
