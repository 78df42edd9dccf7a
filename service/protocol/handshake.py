"""The WebSocket opening handshake of the native path, by the `websockets` sans-I/O server.

No extension is ever negotiated: permessage-deflate costs some 93 KiB per connection, and a
compressed frame could not be shared between subscribers. The library's object is dropped once
the answer is made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final

import msgspec
from websockets.datastructures import Headers, MultipleValuesError
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

_LOGGER = logging.getLogger("repeater.websocket.handshake")
_LOGGER.setLevel(logging.CRITICAL + 1)

JSON_SUBPROTOCOL: Final = Subprotocol("centrifuge-json")
PROTOBUF_SUBPROTOCOL: Final = Subprotocol("centrifuge-protobuf")
_KNOWN: Final = (JSON_SUBPROTOCOL, PROTOBUF_SUBPROTOCOL)

BAD_REQUEST_ANSWER: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)

Check = Callable[[str | None, str | None], HTTPStatus | None]
"""From the request's `Origin` and `Host` to the status to refuse it with, or None."""


class Handshake(msgspec.Struct, frozen=True):
    """The bytes to answer with, whether they accept, and the chosen subprotocol."""

    answer: bytes
    accepted: bool
    subprotocol: str | None = None


class _Server(ServerProtocol):
    """The library's object, with our choice of a subprotocol.

    A method and not the library's argument for it, which makes the object refer to itself: it
    would stay, with the whole request, until the garbage collector came by.
    """

    def select_subprotocol(self, subprotocols: Sequence[Subprotocol]) -> Subprotocol | None:
        """JSON before protobuf; none where none of ours is offered."""
        return next((one for one in _KNOWN if one in subprotocols), None)


def answer_handshake(head: bytes, check: Check) -> Handshake:
    """Answer a request head, which goes up to and including its empty line.

    An incorrect handshake gets the library's answer (400, 405, 426...); a correct one that
    `check` refuses gets that status; any other is accepted.
    """
    server = _Server(subprotocols=_KNOWN, logger=_LOGGER)
    server.receive_data(head)
    requests = server.events_received()
    if not requests or not isinstance(requests[0], Request):
        return Handshake(BAD_REQUEST_ANSWER, accepted=False)
    request = requests[0]
    response = server.accept(request)
    accepted = response.status_code == HTTPStatus.SWITCHING_PROTOCOLS
    if accepted and (refusal := check(*_origin_and_host(request.headers))) is not None:
        response, accepted = server.reject(refusal, f"{refusal.phrase}\n"), False
    server.send_response(response)
    return Handshake(b"".join(server.data_to_send()), accepted, server.subprotocol)


def _origin_and_host(headers: Headers) -> tuple[str | None, str | None]:
    try:
        return headers.get("Origin"), headers.get("Host")
    except MultipleValuesError:
        return "", None  # an origin that no glob but * allows
