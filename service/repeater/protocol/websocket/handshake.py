"""The WebSocket opening handshake of the native path, judged by the `websockets` library.

The library's own way reads the head again and makes the whole state of a protocol. But the verdict
depends only on a key and on five headers, which are the same for most clients. So verdicts are
remembered for the values of four of them, and apart from these for the extensions that are offered.
A plain and correct head is answered from that memory. Any other head goes through the library from
its bytes; every refusal is the library's.

The only extension is permessage-deflate without context takeover, where the caller wants it
(`deflate.py`). An offer that demands a smaller window of the server is declined: the server's
compressed frames are the same for all clients.
"""

from __future__ import annotations

import binascii
import logging
from base64 import b64decode
from collections.abc import Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Final

import msgspec
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, NegotiationError
from websockets.extensions.base import Extension
from websockets.extensions.permessage_deflate import (
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)
from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS, Request
from websockets.server import ServerProtocol
from websockets.typing import ExtensionParameter, Subprotocol
from websockets.utils import accept_key

from repeater.protocol.http.answer import answer_status, write_answer
from repeater.protocol.http.fault import find_fault
from repeater.protocol.http.head import Head

_LOGGER = logging.getLogger("repeater.websocket.handshake")
_LOGGER.setLevel(logging.CRITICAL + 1)

JSON_SUBPROTOCOL: Final = Subprotocol("centrifuge-json")
PROTOBUF_SUBPROTOCOL: Final = Subprotocol("centrifuge-protobuf")
_KNOWN: Final = (JSON_SUBPROTOCOL, PROTOBUF_SUBPROTOCOL)

_ACCEPTED: Final = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: %s\r\n"
)
_JUDGED: Final = (
    *(b"connection", b"upgrade"),
    *(b"sec-websocket-version", b"sec-websocket-protocol"),
)
_EXTENSIONS: Final = b"sec-websocket-extensions"
_ITEMS: Final = 64  # of lists in these; the library takes 4 us for each
_TOO_LONG: Final = write_answer(
    answer_status(HTTPStatus.BAD_REQUEST, text="a list of the handshake is too long"),
    keep_alive=False,
)
_SAMPLE_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
_KEY_SIZE: Final = 16  # bytes (RFC 6455, section 4.1)
_VERDICTS: Final = 64  # remembered; each browser and each library needs a few
_LONG_OFFER: Final = 256  # bytes; a longer offer of extensions is judged each time
_WINDOW: Final = 15  # bits of the server's window: the most, and the only one that it has


class Handshake(msgspec.Struct, frozen=True):
    """The answer's bytes, whether they accept the handshake, and what was chosen."""

    answer: bytes
    """Empty if the head has a fault, is beyond the library's limits, or is not HTTP to it."""
    accepted: bool
    subprotocol: str | None = None
    deflates: bool = False
    """Whether both sides may compress their messages."""


def choose_subprotocol(offered: Sequence[str]) -> Subprotocol | None:
    """Return JSON before protobuf; None if the client offers neither."""
    return next((one for one in _KNOWN if one in offered), None)


class _Server(ServerProtocol):
    """The library's server protocol, with our choice of a subprotocol."""

    # We override the method instead of passing the library's argument `select_subprotocol`. The
    # argument makes the object refer to itself, so that it would stay in memory, with the whole
    # request, until the garbage collector ran.

    def select_subprotocol(self, subprotocols: Sequence[Subprotocol]) -> Subprotocol | None:
        """Return JSON before protobuf; None if the client offers neither."""
        return choose_subprotocol(subprotocols)


class _Deflate(ServerPerMessageDeflateFactory):
    """The library's judgement on one offer of permessage-deflate, without smaller windows."""

    def __init__(self) -> None:
        super().__init__(server_no_context_takeover=True, client_no_context_takeover=True)

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        """Return the answer's parameters; raise NegotiationError to decline the offer."""
        answer, extension = super().process_request_params(params, accepted_extensions)
        if extension.local_max_window_bits < _WINDOW:
            raise NegotiationError("the server has one window")
        return answer, extension


_DEFLATE: Final = (_Deflate(),)
_judge: Final = _Server(subprotocols=_KNOWN, logger=_LOGGER)
"""Gives verdicts only; it never gets a connection."""
_deflating_judge: Final = _Server(subprotocols=_KNOWN, extensions=_DEFLATE, logger=_LOGGER)
"""Gives verdicts on extensions only."""


def answer_handshake(head: Head, *, deflate: bool = False) -> Handshake:
    """Answer a request head: 101 for a correct handshake, else the library's 400, 405, 426...

    The answer to a head with a fault (`find_fault`) is empty. Whether the client may have the
    WebSocket is decided elsewhere, after a correct handshake. With `deflate`, permessage-deflate is
    accepted where it is offered; without it nobody looks at the extensions.
    """
    if find_fault(head) is not None:
        return Handshake(b"", accepted=False)
    headers = _plain_headers(head)
    accept = None if headers is None else _accept_value(headers.get(b"sec-websocket-key", b""))
    if headers is None or accept is None:
        return _answer_bytes(head, deflate=deflate)
    try:
        subprotocol = _verdict(*map(headers.get, _JUDGED))
        extensions = _extensions(headers.get(_EXTENSIONS)) if deflate else ""
    except Exception:  # the library answers every error below
        return _answer_bytes(head, deflate=deflate)
    chosen = f"Sec-WebSocket-Extensions: {extensions}\r\n" if extensions else ""
    if subprotocol:
        chosen += f"Sec-WebSocket-Protocol: {subprotocol}\r\n"
    answer = f"{_ACCEPTED % accept}{chosen}\r\n".encode()
    return Handshake(answer, accepted=True, subprotocol=subprotocol, deflates=bool(extensions))


def _has_long_list(head: Head, *, deflate: bool) -> bool:
    items = sum(value.count(b",") for name, value in head.headers if name in _JUDGED)
    if deflate:
        items += sum(map(_items, (value for name, value in head.headers if name == _EXTENSIONS)))
    return items > _ITEMS


def _items(offer: bytes) -> int:
    """The extensions of an offer, and their parameters."""
    return offer.count(b",") + offer.count(b";")


def _plain_headers(head: Head) -> Mapping[bytes, bytes] | None:
    """The headers of a request without a fault that llhttp and the library read alike; else None.

    Both read a request alike that has no body and no repeated header, and keeps the library's
    limits.
    """
    if not head.upgrades or head.repeats or len(head.raw) > MAX_LINE_LENGTH:
        return None
    if head.method != b"GET" or head.version != "1.1" or not head.target.isascii():
        return None
    headers = head.by_name
    if len(headers) > MAX_NUM_HEADERS:
        return None
    return None if b"content-length" in headers or b"transfer-encoding" in headers else headers


def _accept_value(key: bytes) -> str | None:
    """The answer to a client's key; None if the key is invalid (RFC 6455, section 4.2.1)."""
    key = key.strip(b" \t")
    try:
        size = len(b64decode(key, validate=True))
    except binascii.Error:
        return None
    return accept_key(key.decode()) if size == _KEY_SIZE else None


@lru_cache(_VERDICTS)
def _verdict(*values: bytes | None) -> Subprotocol | None:
    """The subprotocol for these values of the judged headers. A refusal is not remembered.

    Raises:
        InvalidHandshake: the values are not those of a correct handshake.
    """
    if sum(value.count(b",") for value in values if value is not None) > _ITEMS:
        raise InvalidHandshake("a list is too long")
    headers = Headers({"Sec-WebSocket-Key": _SAMPLE_KEY})
    for name, value in zip(_JUDGED, values, strict=True):
        if (text := _text(value)) is not None:
            headers.set_insecure(name.decode(), text)
    _, _, subprotocol = _judge.process_request(Request("/", headers))
    return subprotocol  # type: ignore[return-value]  # the library says `str`


def _extensions(offer: bytes | None) -> str:
    """What the answer says of extensions; empty if none is accepted.

    Raises:
        InvalidHandshake: the offer is malformed, or too long a list.
    """
    if offer is None:
        return ""
    return _judge_offer(offer) if len(offer) > _LONG_OFFER else _remembered_offer(offer)


def _judge_offer(offer: bytes) -> str:
    if _items(offer) > _ITEMS:
        raise InvalidHandshake("a list is too long")
    headers = Headers({"Sec-WebSocket-Extensions": _text(offer) or ""})
    answer, _ = _deflating_judge.process_extensions(headers)
    return answer or ""


_remembered_offer: Final = lru_cache(_VERDICTS)(_judge_offer)


def _text(value: bytes | None) -> str | None:
    """A header's value as the library reads it; None if the header is missing."""
    return None if value is None else value.decode("latin-1").strip(" \t")


def _answer_bytes(head: Head, *, deflate: bool) -> Handshake:
    """Answer by the library alone, for a head that is not plain or not accepted."""
    if _has_long_list(head, deflate=deflate):
        return Handshake(_TOO_LONG, accepted=False)
    extensions = _DEFLATE if deflate else None
    server = _Server(subprotocols=_KNOWN, extensions=extensions, logger=_LOGGER)
    server.receive_data(head.raw)
    requests = server.events_received()
    if not requests or not isinstance(requests[0], Request):
        return Handshake(b"", accepted=False)
    response = server.accept(requests[0])
    server.send_response(response)
    return Handshake(
        b"".join(server.data_to_send()),
        accepted=response.status_code == HTTPStatus.SWITCHING_PROTOCOLS,
        subprotocol=server.subprotocol,
        deflates=bool(server.extensions),
    )
