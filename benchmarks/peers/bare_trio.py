"""What Trio alone accepts: read the head, write a constant 101, keep the connection.

The ordinary way of a Trio server, `serve_tcp` and a `SocketStream` for each client, with nothing
behind it. Usage: python -m benchmarks.peers.bare_trio PORT
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
    """One connection, until it ends. No deadline: the process has one."""
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
