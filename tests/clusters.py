"""The parts of a cluster for tests: several nodes on one real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import pytest

from repeater.cluster import control
from repeater.cluster.opening import Cluster, open_cluster
from repeater.valkey.opening import open_servers
from repeater.valkey.url import parse_url
from tests.deadlines import LOOP_ANSWERS


@contextmanager
def patient_members() -> Iterator[None]:
    """A member has as long to answer as a loop: on a busy machine a second may pass in one step."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(control, "DEADLINE", LOOP_ANSWERS)
        yield


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
