"""trio-websocket, with a memory channel and a writer task for each client.

Repeater depends on this library for its client; this program uses the library as a server.
Usage: python -m benchmarks.peers.trio_websocket_channels PORT
"""

from __future__ import annotations

import logging
from collections import defaultdict
from functools import partial
from typing import Final

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from benchmarks.peers.program import HOST, begin, split

_ROOM: Final = 8_000  # events of 136 bytes: 1 MiB, the bound of Repeater's outbox; more are lost

clients: defaultdict[str, set[trio.MemorySendChannel[str | bytes]]] = defaultdict(set)


async def handle(request: WebSocketRequest) -> None:
    path, channels = split(request.path)
    connection = await request.accept()
    try:
        if path == "/publish":
            await publish(connection, channels)
        else:
            await subscribe(connection, channels)
    except ConnectionClosed:
        return


async def subscribe(connection: WebSocketConnection, channels: list[str]) -> None:
    send, receive = trio.open_memory_channel[str | bytes](_ROOM)
    for channel in channels:
        clients[channel].add(send)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, connection, receive)
            await connection.get_message()
            nursery.cancel_scope.cancel()
    except* ConnectionClosed:
        pass  # The reader or the writer noticed the end, or both.
    finally:
        for channel in channels:
            clients[channel].discard(send)


async def write(
    connection: WebSocketConnection, receive: trio.MemoryReceiveChannel[str | bytes]
) -> None:
    async for event in receive:
        await connection.send_message(event)


async def publish(connection: WebSocketConnection, channels: list[str]) -> None:
    while True:
        event = await connection.get_message()
        for channel in channels:
            for send in clients[channel]:
                try:
                    send.send_nowait(event)
                except trio.WouldBlock:
                    logging.warning("a client's channel is full: it loses an event")


if __name__ == "__main__":
    trio.run(partial(serve_websocket, handle, HOST, begin(), ssl_context=None))
