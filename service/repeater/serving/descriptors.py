"""Open sockets on their way to another process of this machine (SCM_RIGHTS, unix(7)).

The sender keeps its own copies. Both processes then have the same sockets: what waits in the queue
of a listening socket is accepted by either.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Sequence
from typing import Final

import trio

_MESSAGE: Final = b"."  # descriptors travel with at least one byte
_AT_ONCE: Final = 64  # descriptors of one message; Linux takes 253

CAN_PASS: Final = hasattr(socket, "SCM_RIGHTS")
"""Whether this system can pass descriptors."""


async def send_sockets(way: trio.socket.SocketType, sockets: Sequence[socket.socket]) -> None:
    """Pass sockets on, in their order. The caller sets the deadline.

    Raises:
        OSError: the peer has gone, or the system refuses.
    """
    for start in range(0, len(sockets), _AT_ONCE):
        numbers = array.array("i", [one.fileno() for one in sockets[start : start + _AT_ONCE]])
        await way.sendmsg([_MESSAGE], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])


async def receive_sockets(way: trio.socket.SocketType, count: int) -> list[socket.socket]:
    """Take so many sockets from `send_sockets`. Cancelled, or after an error, none stays open.

    The caller sets the deadline.

    Raises:
        OSError: the connection broke, or the peer sent something else.
    """
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            # Nothing else comes until the peer has all: one byte is one message.
            size = socket.CMSG_SPACE(_AT_ONCE * array.array("i").itemsize)
            message, ancillary, flags, _ = await way.recvmsg(1, size, _CLOSE_ON_EXEC)
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    sockets += map(_opened, _numbers(data))
            if not ancillary or message != _MESSAGE or flags & socket.MSG_CTRUNC:
                raise OSError("the peer did not pass its sockets")
    except BaseException:
        for one in sockets:
            one.close()
        raise
    return sockets


_CLOSE_ON_EXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def _numbers(data: bytes) -> list[int]:
    numbers = array.array("i")
    numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return list(numbers)


def _opened(number: int) -> socket.socket:
    one = socket.socket(fileno=number)
    one.set_inheritable(False)
    one.setblocking(False)
    return one
