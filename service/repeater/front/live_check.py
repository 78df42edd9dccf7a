"""The check of a load balancer that the process lives, answered without the ASGI server.

A check must not wait for the pages that strangers ask for.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from repeater.front.request import is_plain, request_of_head
from repeater.front.responses import LIVE, http_date
from repeater.protocol.http.answer import write_answer
from repeater.transports.sockets import send_last

if TYPE_CHECKING:
    from repeater.protocol.http.head import Head

LIVE_TARGET: Final = b"/health/live"
_CLOSE: Final = b"close"


def is_live_check(sock: socket.socket, head: Head, hosts: tuple[str, ...]) -> bool:
    """Whether the first request of a connection, for `LIVE_TARGET`, is an ordinary check."""
    if (head.method, head.version) != (b"GET", "1.1"):
        return False
    if head.by_name.get(b"connection", _CLOSE) != _CLOSE or not is_plain(head):
        return False
    request = request_of_head(head, sock)
    return not request.length and request.host_allowed(hosts)


def answer_live(sock: socket.socket, head: Head) -> bool:
    """Answer that the process lives; return whether more requests may come.

    Raises:
        OSError: the peer is gone, where more might have come.
    """
    keep_alive = b"connection" not in head.by_name
    answer = write_answer(LIVE, keep_alive=keep_alive, date=http_date())
    if keep_alive:
        sock.send(answer)
    else:
        send_last(sock, answer)
    return keep_alive
