"""A back end that calls the server API over HTTP, on either of its two ways."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from repeater.serving.server import Server
from tests.serving import Peer, peer

WAYS = ("native", "quart")


@asynccontextmanager
async def caller(server: Server, way: str) -> AsyncIterator[Peer]:
    """A back end's connection; what is not plain goes to Quart, and stays there."""
    async with peer(server) as back_end:
        if way == "quart":
            assert b" 200 " in await back_end.call("GET", "/health")
        yield back_end
