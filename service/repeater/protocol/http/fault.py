"""The judgement on request heads: one for the native paths and for all requests behind Hypercorn.

A head with a fault is answered with the fault's status, and its connection is closed: where the
next request begins is then not certain (RFC 9112, section 11.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Final

import msgspec

from repeater.protocol.http.head import Head

Field = tuple[bytes, bytes]


class Fault(msgspec.Struct, frozen=True):
    """Why a request is refused: the status of the answer, and the text of its body."""

    status: HTTPStatus
    reason: str


def _bad(reason: str) -> Fault:
    return Fault(HTTPStatus.BAD_REQUEST, reason)


def _not_implemented(reason: str) -> Fault:
    return Fault(HTTPStatus.NOT_IMPLEMENTED, reason)


HEAD_TOO_LARGE: Final = Fault(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request head is too large"
)
NOT_HTTP: Final = _bad("not an HTTP request")
BAD_CHUNK: Final = _bad("invalid chunks or trailers")
NOT_WHOLE: Final = _bad("the request ended before its end")

_METHOD: Final = _not_implemented("the method is not implemented; methods are case-sensitive")
_LINE: Final = _bad("the request line is not METHOD SP target SP HTTP/1.1")
_TARGET: Final = _bad("the target is not a path, an http URL, or * for OPTIONS")
_HOST_COUNT: Final = _bad("a request of HTTP/1.1 has exactly one Host")
_HOST_VALUE: Final = _bad("invalid Host")
_CODING: Final = _not_implemented("no transfer coding but chunked is implemented")
_OLD_CODING: Final = _bad("HTTP/1.0 has no Transfer-Encoding")
_TWO_LENGTHS: Final = _bad("Content-Length with Transfer-Encoding, or more than once")
_LENGTH: Final = _bad("invalid Content-Length")
_HANDSHAKE_BODY: Final = _bad("a WebSocket handshake has no body")

# Fields with one value: of two, a proxy might believe the one and this server the other.
_ONCE: Final = frozenset({
    b"host", b"origin", b"transfer-encoding", b"content-length", b"content-type", b"authorization",
    b"x-api-key", b"x-centrifugo-error-mode", b"last-event-id",
})  # fmt: skip
_REPEATED: Final = {name: _bad(f"{name.decode()} is repeated") for name in _ONCE}

# RFC 3986, section 3.2.2, without IPvFuture. The parts of a name have up to 63 characters, as in
# the DNS: Quart encodes a name by the rules of IDNA, and fails on others.
_PART: Final = rb"[\w~!$&'()*+,;=%-]{1,63}"
_NAME: Final = _PART + rb"(?:\." + _PART + rb"){0,126}\.?"
_AUTHORITY: Final = rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|" + _NAME + rb")(?::[0-9]{0,5})?"
_HOST: Final = re.compile(rb"(?:" + _AUTHORITY + rb")?")
_HOST_LENGTH: Final = 261  # a name of 255 characters and a port
_REMEMBERED: Final = 64  # hosts
_URL: Final = re.compile(rb"https?://(" + _AUTHORITY + rb")(?=[/?]|$)", re.IGNORECASE)
_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~\w-]+) [!-~]+ HTTP/1\.[01]\r\n")
_METHODS: Final = frozenset(
    {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH"}
)
_VERSIONS: Final = {"1.0": b" HTTP/1.0\r\n", "1.1": b" HTTP/1.1\r\n"}
_FRAGMENT: Final = ord("#")  # a number: CPython raises an error inside to look for bytes in bytes
_LENGTH_DIGITS: Final = 19  # of a 64-bit number


def find_fault(head: Head) -> Fault | None:
    """Return why a head of HTTP/1.x is refused; None if it is correct."""
    if not head.sound:
        return _explain(head)
    method, target, version = head.method, head.target, head.version
    ending = _VERSIONS.get(version)
    # llhttp accepts blanks in a row, which RFC 9112, section 3, does not.
    if ending is None or not head.raw.startswith(b"%b %b%b" % (method, target, ending)):
        return _LINE
    if method == b"CONNECT":
        return _METHOD
    if target[:1] != b"/" and not (_URL.match(target) or (target == b"*" and method == b"OPTIONS")):
        return _TARGET
    if _FRAGMENT in target:
        return _TARGET
    fields = head.by_name
    if head.repeats and (fault := _find_repeated(head.headers)):
        return fault
    if not (b"content-length" in fields or b"transfer-encoding" in fields):
        return _find_host_fault(fields, needs_host=version == "1.1")
    if b"transfer-encoding" in fields and version == "1.0":
        return _OLD_CODING  # RFC 9112, section 6.1
    if head.asks_for_websocket:
        return _HANDSHAKE_BODY
    return _find_field_fault(fields, needs_host=version == "1.1")


def find_scope_fault(fields: Sequence[Field]) -> Fault | None:
    """Return why an ASGI server's request, of any version, is refused; None if it is correct.

    The names of the fields are in lower case. That `Host` is there is the server's affair.
    """
    by_name = dict(fields)
    if len(by_name) != len(fields) and (fault := _find_repeated(fields)):
        return fault
    return _find_field_fault(by_name, needs_host=False)


@lru_cache(_REMEMBERED)
def _is_host(value: bytes) -> bool:
    """Whether this is a valid value of `Host` (RFC 9110, section 7.2): a host, perhaps a port."""
    # Cached, because most requests are for the same host.
    return _HOST.fullmatch(value.strip(b" \t")) is not None


def split_url(target: bytes) -> tuple[bytes, bytes] | None:
    """Split a target in absolute form into authority and path; None for every other target."""
    found = _URL.match(target)
    if found is None:
        return None
    path = target[found.end() :]
    return found[1], path if path.startswith(b"/") else b"/" + path


def _find_field_fault(fields: Mapping[bytes, bytes], *, needs_host: bool) -> Fault | None:
    """Return why a request with these fields is refused; None if they are correct."""
    if (fault := _find_host_fault(fields, needs_host=needs_host)) is not None:
        return fault
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if length is None and coding is None:
        return None
    if coding is None:
        return _LENGTH if length is not None and len(length) > _LENGTH_DIGITS else None
    if length is not None:
        return _TWO_LENGTHS
    return None if coding.strip(b" \t").lower() == b"chunked" else _CODING


def _find_host_fault(fields: Mapping[bytes, bytes], *, needs_host: bool) -> Fault | None:
    host = fields.get(b"host")
    if host is None:
        return _HOST_COUNT if needs_host else None
    return None if len(host) <= _HOST_LENGTH and _is_host(host) else _HOST_VALUE


def _find_repeated(fields: Iterable[Field]) -> Fault | None:
    seen = set()
    for name, _ in fields:
        if name in _ONCE and name in seen:
            return _REPEATED[name]
        seen.add(name)
    return None


def _explain(head: Head) -> Fault:
    """Return the fault of a head that llhttp does not accept."""
    line = _REQUEST_LINE.match(head.raw)
    if line is None:
        return _LINE
    return _METHOD if line[1] not in _METHODS else _bad(head.mistake or "invalid request head")
