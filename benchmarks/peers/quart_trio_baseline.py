"""The baseline of Repeater's design: every delivery goes through ASGI.

A Quart-Trio route under Hypercorn owns a trio memory channel and a writer task for each client;
`POST /publish` does a `send_nowait` into the channel of each. This is the obvious first design. It
took 128 us of CPU a delivery when Repeater's design was chosen, where a bare `send()` took 7:
each event wakes a task for each client and passes Quart, Hypercorn and wsproto on its way.
A full channel loses events for its client, as no task waits for room.
Usage: python -m benchmarks.peers.quart_trio_baseline PORT
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import request, websocket
from quart_trio import QuartTrio

from benchmarks.peers.program import BACKLOG, HOST, begin

_ROOM: Final = 8_000  # events of 136 bytes: 1 MiB, the bound of Repeater's outbox; more are lost

app = QuartTrio(__name__)
clients: defaultdict[str, set[trio.MemorySendChannel[str | bytes]]] = defaultdict(set)


@app.websocket("/ws")
async def subscribe() -> None:
    channels = websocket.args.getlist("channel")
    send, receive = trio.open_memory_channel[str | bytes](_ROOM)
    for channel in channels:
        clients[channel].add(send)
    try:
        await websocket.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, receive)
            while True:  # until the client goes: Quart cancels the route
                await websocket.receive()
    finally:
        for channel in channels:
            clients[channel].discard(send)


async def write(receive: trio.MemoryReceiveChannel[str | bytes]) -> None:
    async for event in receive:
        await websocket.send(event)


@app.post("/publish")
async def publish() -> str:
    event = await request.get_data(as_text=True)
    for channel in request.args.getlist("channel"):
        for send in clients[channel]:
            try:
                send.send_nowait(event)
            except trio.WouldBlock:
                app.logger.warning("a client's channel is full: it loses an event")
    return "ok"


if __name__ == "__main__":
    config = Config()
    config.bind = [f"{HOST}:{begin()}"]
    config.backlog = BACKLOG
    config.keep_alive_max_requests = 1_000_000  # by default Hypercorn hangs up after 1,000
    trio.run(serve, app, config)
