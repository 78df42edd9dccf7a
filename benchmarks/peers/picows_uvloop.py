"""picows on uvloop, with its core API, which has neither task nor queue for a client.

`send` copies a frame of up to 8 KiB into the connection's buffer, and writes it to the socket at
once. Usage: python -m benchmarks.peers.picows_uvloop PORT
"""

from __future__ import annotations

from collections import defaultdict

import uvloop
from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_create_server,
)

from benchmarks.peers.program import BACKLOG, HOST, begin, split

clients: defaultdict[str, set[WSTransport]] = defaultdict(set)


class Connection(WSListener):
    def __init__(self, channels: list[str]) -> None:
        self.channels = channels

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()


class Subscriber(Connection):
    def on_ws_connected(self, transport: WSTransport) -> None:
        for channel in self.channels:
            clients[channel].add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        for channel in self.channels:
            clients[channel].discard(transport)


class Publisher(Connection):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type != WSMsgType.TEXT:
            super().on_ws_frame(transport, frame)
            return
        event, text = frame.get_payload_as_bytes(), WSMsgType.TEXT
        for channel in self.channels:
            for client in clients[channel]:
                client.send(text, event)


def listener(request: WSUpgradeRequest) -> Connection:
    path, channels = split(request.path.decode())
    return Publisher(channels) if path == "/publish" else Subscriber(channels)


async def main(port: int) -> None:
    server = await ws_create_server(listener, HOST, port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(begin()))
