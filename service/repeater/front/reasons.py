"""Why a request is refused before there is a client, from its head."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec

from repeater.access.page_refusals import Asked, why_foreign, why_other_host
from repeater.causes import Cause, Why

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repeater.clients.refusals import Refusals
    from repeater.front.request import Request
    from repeater.protocol.http.answer import Answer

_SHOWN: Final = 200
"""Characters of what a stranger sent that a line of the log shows."""
_LONGEST: Final = 1_000
"""Characters of a reason in a header."""
_HOST_OF_FORWARDED: Final = re.compile(r'(?:^|[;,\s])host="?([^";,\s]+)', re.IGNORECASE)
_OF_PROXIES: Final = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")

BODY_TOO_LARGE: Final = Why(
    Cause.LIMIT, "the body is larger than message_limit", "send a smaller one, or raise the limit"
)
BODY_LATE: Final = Why(Cause.REQUEST, "the body did not come in time (head_timeout)")
LARGE_HEAD: Final = Why(
    Cause.REQUEST,
    "the head of the request is larger than head_limit",
    "send fewer or smaller cookies, or raise head_limit",
)
_TLS: Final = b"\x16\x03"  # a handshake's record of any version (RFC 8446, section 5.1)
_TLS_TO_PLAIN: Final = Why(
    Cause.REQUEST,
    "a TLS handshake came to a port without TLS",
    "connect by http:// or ws://, or set tls_cert and tls_key",
)
_NOT_HTTP: Final = Why(Cause.REQUEST, "the first bytes are not an HTTP request")
_NO_HANDSHAKE: Final = "Failed to open a WebSocket connection: "
"""How the library's answer to a wrong handshake begins."""
_MEND_HANDSHAKE: Final = (
    "connect with ws:// or wss://; a proxy has to pass Upgrade and Connection on, by HTTP/1.1"
)

EXPLANATION: Final = "Repeater-Refused"
"""The header of a refusal that says why, in development mode: a browser's network tab shows it also
where no page may read the answer."""


def foreign_page(request: Request, origins: Sequence[str]) -> Why:
    """Why a page of another origin is refused; its origin is what its browser says."""
    return why_foreign(_asked(request), origins)


def other_host(request: Request, hosts: Sequence[str]) -> Why:
    """Why a request for another host than these is refused."""
    return why_other_host(_asked(request), hosts)


def unheard_cookie(request: Request) -> Why:
    """Why the token in a cookie is not looked at."""
    origin = (request.header(b"origin") or "")[:_SHOWN]
    return Why(
        Cause.CREDENTIALS,
        "no token: one in the cookie does not count, because only '*' allows the page",
        f"name the origin {origin!r} in allowed_origins",
    )


def wrong_method(request: Request) -> Why:
    """Why a request with another method than the route's is refused."""
    return Why(Cause.METHOD, f"{request.path} does not take {request.method[:_SHOWN]}")


def outside_prefix(path: str, prefix: str) -> Why:
    """Why a path of ours is not found: it lacks `path_prefix`."""
    mend = (
        f"ask for {prefix + path!r}; a proxy has to pass the prefix on (nginx: proxy_pass without "
        "a path), or path_prefix has to be empty"
    )
    return Why(Cause.REQUEST, f"{path!r} is outside of path_prefix, {prefix!r}", mend)


def misplaced(path: str, prefix: str) -> Why:
    """Why a path that ends like one of ours is not found: nobody set, or took off, its prefix."""
    shown = prefix[:_SHOWN]
    mend = f"set path_prefix = {shown!r}, or have the proxy take {shown!r} off"
    return Why(Cause.REQUEST, f"nothing is at {path[:_SHOWN]!r}", mend)


def not_http(received: bytes) -> Why:
    """Why a connection is ended whose first bytes are these."""
    return _TLS_TO_PLAIN if received.startswith(_TLS) else _NOT_HTTP


def no_handshake(answer: bytes = b"") -> Why:
    """Why a request to a WebSocket's path is refused, with the text of its answer."""
    text = "the request is not the handshake of a WebSocket"
    body = answer.partition(b"\r\n\r\n")[2].decode(errors="replace")
    told = body.partition("\n")[0].removeprefix(_NO_HANDSHAKE).rstrip(".")
    return Why(Cause.REQUEST, f"{text}: {told[:_SHOWN]}" if told else text, _MEND_HANDSHAKE)


def explained(refusals: Refusals, answer: Answer, why: Why) -> Answer:
    """The answer to a refused request: in development mode its body and a header say why.

    A stream that says when to come back (200) keeps its body.
    """
    if not refusals.explaining:
        return answer
    answer = msgspec.structs.replace(answer, headers=(*answer.headers, (EXPLANATION, _header(why))))
    if answer.status == HTTPStatus.OK:
        return answer
    body = f"{why}\n".encode()
    return msgspec.structs.replace(answer, body=body, content_type="text/plain; charset=utf-8")


def _header(why: Why) -> str:
    text = str(why).encode("ascii", "backslashreplace").decode()
    return "".join(one if one.isprintable() else "?" for one in text)[:_LONGEST]


def _asked(request: Request) -> Asked:
    names = [name for name, _ in request.pairs]
    return Asked(
        origin=request.header(b"origin"),
        host=request.header(b"host"),
        repeated=names.count(b"origin") > 1 or names.count(b"host") > 1,
        first_host=_first_host(request),
        proxied=any(name in request.headers for name in _OF_PROXIES),
    )


def _first_host(request: Request) -> str | None:
    """The host that a proxy says it was asked for."""
    forwarded = request.header(b"x-forwarded-host")
    if forwarded is not None:
        return forwarded.partition(",")[0].strip()
    found = _HOST_OF_FORWARDED.search(request.header(b"forwarded") or "")
    return found[1] if found else None
