"""The heads of plain API calls: what the native REST path reads of a request."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import msgspec

from repeater.protocol.http.fault import find_fault
from repeater.protocol.http.head import read_head

_NOT_PLAIN: Final = (b"expect", b"upgrade", b"http2-settings")
_REMEMBERED: Final = 64  # heads; each has at most the size of `head_limit`, 16 KiB by default


class CallHead(msgspec.Struct, frozen=True):
    """The head of one plain API call: its path, its credentials, and how its body is delimited.

    `length` is the body's bytes, None for a chunked body.
    """

    path: bytes
    query: bytes
    length: int | None
    keep_alive: bool
    api_key: bytes | None
    authorization: bytes | None
    error_mode: bytes | None
    host: bytes
    from_page: bool
    """Whether a browser says which page makes the call."""


@lru_cache(_REMEMBERED)
def read_call_head(raw: bytes) -> CallHead | None:
    """Read the head of an API call; `raw` ends with the head's empty line.

    Returns None unless it is a plain POST of HTTP/1.1: for every fault, an upgrade, or an
    expectation.
    """
    # Cached, because a back end sends the same bytes as a head again and again.
    head = read_head(raw)
    if find_fault(head) is not None or head.upgrades:
        return None
    headers = head.by_name
    if head.method != b"POST" or head.version != "1.1":
        return None
    if any(name in headers for name in _NOT_PLAIN):
        return None
    path, _, query = head.target.partition(b"?")
    return CallHead(
        path,
        query,
        None if b"transfer-encoding" in headers else int(headers.get(b"content-length", b"0")),
        head.keep_alive,
        headers.get(b"x-api-key"),
        headers.get(b"authorization"),
        headers.get(b"x-centrifugo-error-mode"),
        headers[b"host"],
        b"origin" in headers or b"sec-fetch-site" in headers,
    )
