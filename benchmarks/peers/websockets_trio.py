"""`websockets` on Trio, with its own `broadcast()` and without compression.

`broadcast()` starts a task for each connection and returns when all connections were written to.
Usage: python -m benchmarks.peers.websockets_trio PORT
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import trio
from websockets.trio.server import ServerConnection, broadcast, serve

from benchmarks.peers.program import BACKLOG, HOST, begin, split

clients: defaultdict[str, set[ServerConnection]] = defaultdict(set)


async def handle(connection: ServerConnection) -> None:
    assert connection.request is not None
    path, channels = split(connection.request.path)
    if path == "/publish":
        await publish(connection, channels)
    else:
        await subscribe(connection, channels)


async def subscribe(connection: ServerConnection, channels: list[str]) -> None:
    for channel in channels:
        clients[channel].add(connection)
    try:
        await connection.wait_closed()
    finally:
        for channel in channels:
            clients[channel].discard(connection)


async def publish(connection: ServerConnection, channels: list[str]) -> None:
    while True:  # until the publisher leaves: ConnectionClosed
        event = await connection.recv(decode=False)
        for channel in channels:
            await broadcast(clients[channel], event, text=True)


if __name__ == "__main__":
    listen = partial(serve, host=HOST, compression=None, backlog=BACKLOG)
    trio.run(listen, handle, begin())
