"""uWebSockets (C++) through socketify: its topics do the fan-out, and Python only passes events.

Usage: python -m benchmarks.peers.uwebsockets PORT
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any, Final

from socketify import App, AppListenOptions, CompressOptions, OpCode

from benchmarks.peers.program import BACKLOG, HOST, begin, channels_of

SETTINGS: Final = {
    "compression": CompressOptions.DISABLED,
    # A message beyond this bound is dropped. Here its receiver is cut as well, so no event is lost
    # unseen. Repeater's outbox has the same bound.
    "max_backpressure": 1_048_576,
    "close_on_backpressure_limit": True,
    "idle_timeout": 120,  # seconds; pings keep quiet subscribers connected
    "send_pings_automatically": True,
    "max_payload_length": 1_048_576,
}

app = App()


def upgrade(response: Any, request: Any, context: Any) -> None:
    channels = channels_of(request.get_full_url().partition("?")[2])
    response.upgrade(
        request.get_header("sec-websocket-key"),
        request.get_header("sec-websocket-protocol"),
        request.get_header("sec-websocket-extensions"),
        context,
        channels,
    )


def subscribe(ws: Any) -> None:
    for channel in ws.get_user_data():
        ws.subscribe(channel)


def publish(ws: Any, event: str, _opcode: OpCode) -> None:
    for channel in ws.get_user_data():
        app.publish(channel, event, OpCode.TEXT)


def post(response: Any, request: Any) -> None:
    channels = channels_of(request.get_full_url().partition("?")[2])
    body: list[bytes] = []

    def take(response: Any, chunk: bytes, is_end: bool) -> None:
        body.append(chunk)
        if is_end:
            event = b"".join(body)
            for channel in channels:
                app.publish(channel, event, OpCode.TEXT)
            response.end("ok")

    response.on_data(take)


def health(response: Any, _request: Any) -> None:
    response.end("ok")


def lengthen_queue() -> None:
    """uSockets asks for a queue of 512 connections; a second `listen` may ask for more."""
    for name in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=int(name.name)) as sock:
            try:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    sock.listen(BACKLOG)
            finally:
                sock.detach()


if __name__ == "__main__":
    port = begin()
    app.ws("/ws", SETTINGS | {"upgrade": upgrade, "open": subscribe})
    app.ws("/publish", SETTINGS | {"upgrade": upgrade, "message": publish})
    app.post("/publish", post)
    app.get("/health/live", health)
    app.listen(AppListenOptions(port=port, host=HOST))
    lengthen_queue()
    # App.run() polls this loop from asyncio without sleeping under load, which takes a whole core.
    # Nothing here needs asyncio, so uWebSockets' own loop runs alone, and its work is counted.
    app.loop.uv_loop.run()
