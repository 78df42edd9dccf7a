"""A bare Trio server: it reads the head, writes a constant 101, and keeps the connection.

It is written in Trio's ordinary way, with `serve_tcp` and a `SocketStream` for each client, and
does nothing else. Usage: python -m benchmarks.peers.bare_trio PORT
"""

from __future__ import annotations

import signal
import sys
from functools import partial
from typing import Final

import trio

from benchmarks.peers.floor import ANSWER

_LIFETIME: Final = 600  # seconds


async def keep(stream: trio.SocketStream) -> None:
    """Serve one connection until it ends. No deadline: the process has one."""
    head = b""
    try:
        while b"\r\n\r\n" not in head:
            received = await stream.receive_some()
            if not received:
                return
            head += received
        await stream.send_all(ANSWER)
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        return


if __name__ == "__main__":
    signal.alarm(_LIFETIME)
    trio.run(partial(trio.serve_tcp, keep, int(sys.argv[1]), host="127.0.0.1", backlog=4_096))
