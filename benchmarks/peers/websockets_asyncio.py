"""`websockets` on asyncio, as its documentation advises for broadcasts.

That means: uvloop; `broadcast()`, which writes to every connection without a task for each; and no
compression, because it would cost memory, and a compressor's work for each frame.
Usage: python -m benchmarks.peers.websockets_asyncio PORT
"""

from __future__ import annotations

from collections import defaultdict

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

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
            broadcast(clients[channel], event, text=True)


async def main(port: int) -> None:
    async with serve(handle, HOST, port, compression=None, backlog=BACKLOG) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(begin()))
