"""Plain requests: which heads count as such, and chunked bodies taken apart."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repeater.front.request import request_of_head
from repeater.protocol.http.call_head import read_call_head
from repeater.protocol.http.chunked import ChunkedReader
from repeater.protocol.http.head import read_head

LINE = b"POST /api/publish?api_key=a HTTP/1.1\r\n"


def test_a_plain_head() -> None:
    """Target, length, and the headers that matter, whatever their case."""
    head = read_call_head(
        LINE + b"hOsT: a\r\nX-Api-Key: k\r\nAUTHORIZATION: apikey k\r\n"
        b"X-Centrifugo-Error-Mode: transport\r\ncontent-length: 12\r\nAccept: */*\r\n\r\n"
    )
    assert head is not None
    assert (head.path, head.query, head.length) == (b"/api/publish", b"api_key=a", 12)
    assert (head.api_key, head.authorization, head.error_mode) == (b"k", b"apikey k", b"transport")
    assert head.keep_alive


def test_length_and_end_of_the_connection() -> None:
    """No length is an empty body; `chunked` has none; `Connection: close` is seen."""
    bare = read_call_head(LINE + b"Host: a\r\n\r\n")
    assert bare is not None
    assert bare.length == 0
    chunked = read_call_head(LINE + b"Host: a\r\nTransfer-Encoding: Chunked\r\n\r\n")
    assert chunked is not None
    assert chunked.length is None
    closing = read_call_head(LINE + b"Host: a\r\nConnection: Close\r\n\r\n")
    assert closing is not None
    assert not closing.keep_alive
    several = read_call_head(LINE + b"Host: a\r\nConnection: x, close\r\nContent-Length: 1\r\n\r\n")
    assert several is not None
    assert not several.keep_alive


def test_parameters_that_mean_nothing_are_not_read() -> None:
    """A head has room for thousands, and to take an escape apart is slow."""
    head = read_head(
        b"GET /events?a=%41&channel=%61%2Bb+c&a=%&channel=&channel=d&%63hannel=e&lastEventId=x%3A"
        b" HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    request = request_of_head(head, "")
    assert request.query == {"channel": ["a+b c", "d"], "lastEventId": ["x:"]}


@pytest.mark.parametrize(
    "head",
    [
        b"GET /api/publish HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /api/publish HTTP/1.0\r\nHost: a\r\n\r\n",
        b"POST /api/publish HTTP/2.0\r\nHost: a\r\n\r\n",
        b"POST /api/publish\r\nHost: a\r\n\r\n",
        b"POST /api/\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        LINE + b"\r\n",
        LINE + b"Host: a\r\nHost: b\r\n\r\n",
        LINE + b"Host: a\nContent-Length: 1\r\n\r\n",
        LINE + b"Host: a\r\n b\r\n\r\n",
        LINE + b"Host: a\r\nX: b\r\n\tc\r\n\r\n",
        LINE + b"Host: a\r\nContent-Length : 1\r\n\r\n",
        LINE + b"Host: a\r\nContent-Length: +1\r\n\r\n",
        LINE + b"Host: a\r\nContent-Length: 1, 1\r\n\r\n",
        LINE + b"Host: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        LINE + b"Host: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        LINE + b"Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        LINE + b"Host: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        LINE + b"Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        LINE + b"Host: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        LINE + b"Host: a\r\nExpect: 100-continue\r\n\r\n",
        LINE + b"Host: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        LINE + b"Host: a\r\nX-API-Key: a\r\nX-API-Key: b\r\n\r\n",
        LINE + b"Host: a\r\nX: \x00\r\n\r\n",
        LINE + b": a\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
    ],
)
def test_what_is_not_plain(head: bytes) -> None:
    """Left to the server that knows all of HTTP."""
    assert read_call_head(head) is None


def chunked(parts: list[bytes], trailers: bytes = b"") -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part)
    return chunks + b"0\r\n" + trailers + b"\r\n"


@given(
    parts=st.lists(st.sampled_from([b"a", b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"x" * 40])),
    trailers=st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC: d\r\n"]),
    rest=st.sampled_from([b"", b"POST / HTTP/1.1\r\n\r\n", b"\r\n\r\n", b"\x00"]),
    cuts=st.lists(st.integers(0, 300)),
)
def test_a_chunked_body_ends_where_it_ends(
    parts: list[bytes], trailers: bytes, rest: bytes, cuts: list[int]
) -> None:
    """However it is cut: the content, and not one byte of what follows."""
    sent = chunked(parts, trailers) + rest
    reader, content, left = ChunkedReader(), b"", b""
    places = sorted({0, *(cut for cut in cuts if cut < len(sent)), len(sent)})
    for start, end in pairwise(places):
        if reader.complete:
            left += sent[start:end]
            continue
        content += reader.feed(sent[start:end])
    assert reader.complete
    assert content == b"".join(parts)
    assert reader.rest + left == rest


@pytest.mark.parametrize(
    "sent",
    [
        b"x\r\n",
        b"-1\r\n",
        b"3\nabc",
        b"3\r\nabcd",
        b"3\r\nabc\n",
        b"0\r\n\n",
        b"fffffffffffffffffff\r\n",
        b"0\r\nA: " + b"a" * 17_000,
        b"1;" + b"a" * 17_000,
    ],
)
def test_a_broken_chunk(sent: bytes) -> None:
    """Bad framing breaks a body, and so do trailers or extensions without end."""
    reader = ChunkedReader()
    pieces = [sent[start : start + 1_000] for start in range(0, len(sent), 1_000)]
    for piece in pieces:
        reader.feed(piece)
    assert reader.broken
    assert not reader.complete
