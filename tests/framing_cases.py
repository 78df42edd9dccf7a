"""Requests as bytes, each with what RFC 9112 wants of its server: the table of test_framing.py.

A case is judged by the statuses of its answers, by whether its connection is kept, and by how many
events it published.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

EVENT = b'{"channel":"a","data":1}'
LINE = b"POST /api/publish HTTP/1.1\r\n"
HOST = b"Host: a\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"18\r\n" + EVENT + b"\r\n0\r\n\r\n"
LENGTH = b"Content-Length: 24\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"

WAYS = ("first", "after a call", "after Hypercorn", "to Hypercorn")
PASSED_ON = b"Upgrade: nothing\r\n"  # a request with it is not plain, and means the same


class Case(msgspec.Struct, frozen=True):
    """One row. `rule` is the section of RFC 9112, or names another document."""

    name: str
    rule: str
    sent: bytes
    statuses: tuple[int, ...]
    kept: bool
    published: int


def publish(fields: bytes = b"", line: bytes = LINE, host: bytes = HOST) -> bytes:
    """A call that publishes one event."""
    return line + host + LENGTH + fields + b"\r\n" + EVENT


def accepted(name: str, rule: str, sent: bytes, times: int = 1, *, kept: bool = True) -> Case:
    """A case that publishes, and is answered 200 as often."""
    return Case(name, rule, sent, (200,) * times, kept, times)


def refused(name: str, rule: str, sent: bytes, status: int = 400) -> Case:
    """A case that publishes nothing, and costs its connection."""
    return Case(name, rule, sent, (status,), kept=False, published=0)


def answered(name: str, rule: str, sent: bytes, *statuses: int) -> Case:
    """A case that publishes nothing, and keeps its connection."""
    return Case(name, rule, sent, statuses, kept=True, published=0)


def request_lines() -> Iterator[Case]:
    """RFC 9112, section 3: METHOD SP target SP HTTP/1.x, and nothing else."""
    yield accepted("an empty line before", "2.2", b"\r\n" + publish())
    yield accepted("several empty lines before", "2.2", b"\r\n" * 3 + publish())
    yield accepted("an empty line between", "2.2", publish() + b"\r\n" + publish(), 2)
    yield accepted("an empty line behind", "2.2", publish() + b"\r\n")
    yield refused("a bare LF before", "2.2", b"\n" + publish())
    yield refused("a bare CR before", "2.2", b"\r" + publish())
    yield refused("a blank before", "2.2", b" " + publish())
    for name, line in (
        ("two blanks before the target", b"POST  /api/publish HTTP/1.1\r\n"),
        ("two blanks before the version", b"POST /api/publish  HTTP/1.1\r\n"),
        ("a blank behind the version", b"POST /api/publish HTTP/1.1 \r\n"),
        ("a tab before the target", b"POST\t/api/publish HTTP/1.1\r\n"),
        ("a tab before the version", b"POST /api/publish\tHTTP/1.1\r\n"),
        ("a blank in the target", b"POST /api/ publish HTTP/1.1\r\n"),
        ("a bare LF as its end", b"POST /api/publish HTTP/1.1\n"),
        ("a bare CR as its end", b"POST /api/publish HTTP/1.1\r"),
        ("no version", b"POST /api/publish\r\n"),
        ("no target", b"POST HTTP/1.1\r\n"),
        ("no slash", b"POST api/publish HTTP/1.1\r\n"),
        ("a fragment", b"POST /api/publish#a HTTP/1.1\r\n"),
        ("NUL in the target", b"POST /api/publish\x00 HTTP/1.1\r\n"),
        ("DEL in the target", b"POST /api/publish\x7f HTTP/1.1\r\n"),
        ("a byte above 127 in the target", b"POST /api/publish\xff HTTP/1.1\r\n"),
        ("UTF-8 in the target", b"POST /api/publish?\xc3\xa9 HTTP/1.1\r\n"),
        ("an asterisk", b"POST * HTTP/1.1\r\n"),
    ):
        yield refused(name, "3", publish(line=line))


def versions() -> Iterator[Case]:
    """RFC 9112, section 2.3: HTTP/1.0 and 1.1. HTTP/2 is never spoken unless TLS negotiated it."""
    for version in (
        *(b"HTTP/0.9", b"HTTP/1.2", b"HTTP/1.9", b"HTTP/2.0", b"HTTP/3.0", b"HTTP/2", b"HTTP/1"),
        *(b"HTTP/1.10", b"HTTP/11.1", b"HTTP/01.1", b"HTTP/1.1.1", b"HTTP/1,1", b"HTTP/ 1.1"),
        *(
            b"http/1.1",
            b"Http/1.1",
            b"HTTPS/1.1",
            b"ICE/1.0",
            b"RTSP/1.0",
            b"HTTP 1.1",
            b"HTTP/-1.1",
        ),
    ):
        line = b"POST /api/publish %b\r\n" % version
        yield refused(version.decode(), "2.3", publish(line=line))
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield refused("the preface of HTTP/2", "RFC 9113, 3.3", preface)
    old = LINE.replace(b"1.1", b"1.0")
    yield accepted("HTTP/1.0", "9.3", publish(line=old), kept=False)
    keep = b"Connection: keep-alive\r\n"
    yield accepted("HTTP/1.0 that asks to be kept", "9.3", publish(keep, old), kept=False)
    sent = old + HOST + CHUNKED + b"\r\n" + CHUNKS
    yield refused("HTTP/1.0 with chunks", "6.1", sent)


def methods() -> Iterator[Case]:
    """RFC 9110, section 9.1: case-sensitive; what is not known is 501, what is not allowed 405."""
    for method in (b"post", b"Post", b"FOO", b"POSTS", b"P", b"PO!ST", b"get", b"A" * 40, b"PRI"):
        line = method + b" /api/publish HTTP/1.1\r\n"
        yield refused(method.decode(), "RFC 9110, 9.1", publish(line=line), 501)
    for method in (b"CONNECT a:80", b"CONNECT /api/publish"):
        sent = method + b" HTTP/1.1\r\nHost: a\r\n\r\n"
        yield refused(method.decode(), "RFC 9110, 9.3.6", sent, 501)
    for method in (b"GET", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"M-SEARCH"):
        line = method + b" /api/publish HTTP/1.1\r\n"
        yield answered(method.decode(), "RFC 9110, 15.5.6", publish(line=line), 405)
    for method in (b"PO(ST", b"PO/ST", b"PO\xffST", b"P\x00ST", b"PO\x7fST", b'"POST"', b"[POST]"):
        line = method + b" /api/publish HTTP/1.1\r\n"
        yield refused(repr(method), "RFC 9110, 5.6.2", publish(line=line))


def hosts() -> Iterator[Case]:
    """RFC 9112, section 3.2: one valid Host, or 400."""
    yield refused("no Host", "3.2", publish(host=b""))
    yield refused("two Hosts", "3.2", publish(host=HOST + b"Host: b\r\n"))
    yield refused("twice the same Host", "3.2", publish(host=HOST * 2))
    yield refused(
        "two Hosts of HTTP/1.0", "3.2", publish(host=HOST * 2, line=LINE.replace(b"1.1", b"1.0"))
    )
    for value in (
        *(
            b"a/b c",
            b"a b",
            b"a/b",
            b"a,b c",
            b"a?b",
            b"a#b",
            b"u@a",
            b"http://a",
            b"a:b",
            b"a:80:80",
        ),
        *(b"a:999999", b"[::1", b"::1", b"[a b]", b"[]", b"\xe9", b"a\tb", b"<a>", b'"a"', b"a\\b"),
        *(b"b" * 8_000, b"a" * 64, b"c." * 140, b"a..b", b".a", b"."),
    ):
        host = b"Host: %b\r\n" % value
        yield refused(f"Host {value[:20]!r}", "3.2", publish(host=host))
    for value in (
        b"a:80",
        b"a:",
        b"127.0.0.1",
        b"[::1]:8000",
        b"a_b.example",
        b" a \t",
        b"A.B",
        b"a.b.",
    ):
        host = b"Host:%b\r\n" % value
        yield accepted(f"Host {value!r}", "RFC 9110, 7.2", publish(host=host))


def targets() -> Iterator[Case]:
    """RFC 9112, section 3.2.2: a target in absolute form is served; its authority must be one."""
    for target in (
        b"http://a/api/publish",
        b"HTTP://[::1]:8000/api/publish",
        b"https://b/api/publish",
    ):
        line = b"POST %b HTTP/1.1\r\n" % target
        yield accepted(target.decode(), "3.2.2", publish(line=line))
    for target in (
        *(b"http:///api/publish", b"http://u@a/api/publish", b"ftp://a/api/publish", b"http:/api"),
        *(b"http://a:b/api/publish", b"http://a\\b/api/publish", b"//", b"http://", b"a:80"),
    ):
        line = b"POST %b HTTP/1.1\r\n" % target
        if target != b"//":
            yield refused(target.decode(), "3.2.2", publish(line=line))
    for target in (b"//api/publish", b"/api//publish", b"/api/./publish", b"/api%2fpublish"):
        line = b"POST %b HTTP/1.1\r\n" % target
        yield answered(target.decode(), "RFC 3986, 6.2.2", publish(line=line), 404)
    options = b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"
    yield answered("OPTIONS *", "3.2.4", options, 404)


def fields() -> Iterator[Case]:
    """RFC 9112, section 5: a name, a colon, a value, on one line."""
    for name, field in (
        ("a blank before the colon", b"X : a\r\n"),
        ("a tab before the colon", b"X\t: a\r\n"),
        ("a blank before the name", b" X: a\r\n"),
        ("a folded line", b"X: a\r\n b\r\n"),
        ("a line folded by a tab", b"X: a\r\n\tb\r\n"),
        ("a folded length", b"X: a\r\n Content-Length: 1\r\n"),
        ("no colon", b"X\r\n"),
        ("no name", b": a\r\n"),
        ("a name with a bracket", b"X(: a\r\n"),
        ("a name with a byte above 127", b"X\xff: a\r\n"),
        ("a name with NUL", b"X\x00: a\r\n"),
        ("a bare CR", b"X: a\rb\r\n"),
        ("a bare CR before the end", b"X: a\r\r\n"),
        ("a bare LF", b"X: a\nY: b\r\n"),
        ("NUL", b"X: a\x00b\r\n"),
        ("a control character", b"X: a\x01b\r\n"),
        ("DEL", b"X: a\x7f\r\n"),
        ("a vertical tab", b"X: a\x0bb\r\n"),
    ):
        yield refused(name, "5", publish(field))
    yield accepted("no blank behind the colon", "5.1", publish(b"X:a\r\n"))
    yield accepted("an empty value", "5.1", publish(b"X:\r\n"))
    yield accepted("blanks around a value", "5.1", publish(b"X: \t a \t \r\n"))
    yield accepted("a value above 127", "RFC 9110, 5.5", publish(b"X: \xff\xe9\r\n"))
    yield accepted("a repeated list", "RFC 9110, 5.3", publish(b"Accept: a/b\r\nAccept: c/d\r\n"))
    yield accepted("a name in capitals", "RFC 9110, 5.1", publish(b"X-API-KEY: a\r\n"))
    for field in (b"Origin", b"Authorization", b"X-API-Key", b"Content-Type", b"Last-Event-ID"):
        line = field + b": http://a\r\n"
        yield refused(f"{field.decode()} twice", "RFC 9110, 5.3", publish(line * 2))
    large = publish(b"X: " + b"a" * 20_000 + b"\r\n")
    yield refused("a head that is too large", "RFC 6585, 5", large, 431)
    yield refused("too many fields", "RFC 6585, 5", publish(b"X: a\r\n" * 3_000), 431)


def lengths() -> Iterator[Case]:
    """RFC 9112, sections 6.2 and 6.3: one length, in digits."""
    for value in (
        *(b"+24", b"-24", b"24 24", b"24,24", b"24, 24", b"24;", b"0x18", b"2_4", b"24.0", b"1e1"),
        *(b"", b" ", b"a", b'"24"', b"\xb2\xb4", b"18446744073709551640", b"0" * 30 + b"24"),
    ):
        sent = LINE + HOST + b"Content-Length: %b\r\n\r\n" % value + EVENT
        yield refused(f"length {value!r}", "6.2", sent)
    twice = LINE + HOST + LENGTH * 2 + b"\r\n" + EVENT
    yield refused("the same length twice", "6.3", twice)
    other = LINE + HOST + LENGTH + b"Content-Length: 1\r\n\r\n" + EVENT
    yield refused("two lengths", "6.3", other)
    for value in (b" 24 ", b"24\t", b"024", b"\t24"):
        sent = LINE + HOST + b"Content-Length:%b\r\n\r\n" % value + EVENT
        yield accepted(f"length {value!r}", "6.2", sent)
    yield Case("without a length", "6.3", LINE + HOST + b"\r\n" + HEALTH, (400, 200), True, 0)
    zero = LINE + HOST + b"Content-Length: 0\r\n\r\n" + HEALTH
    yield Case("length 0", "6.3", zero, (400, 200), True, 0)
    health = b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 24\r\n\r\n" + EVENT
    yield answered("GET with a body", "6", health + HEALTH, 200, 200)


def codings() -> Iterator[Case]:
    """RFC 9112, sections 6.1 and 6.3: chunked, alone, and without a length."""
    for name, field in (
        ("with a length", LENGTH + CHUNKED),
        ("before a length", CHUNKED + LENGTH),
        ("with length 0", b"Content-Length: 0\r\n" + CHUNKED),
        ("that is empty, with a length", LENGTH + b"Transfer-Encoding:\r\n"),
        ("that is unknown, with a length", LENGTH + b"Transfer-Encoding: x\r\n"),
        ("that is identity", b"Transfer-Encoding: identity\r\n"),
        ("that is empty", b"Transfer-Encoding:\r\n"),
        ("that is gzip", b"Transfer-Encoding: gzip\r\n"),
        ("that is chunked, then gzip", b"Transfer-Encoding: chunked, gzip\r\n"),
        ("that is chunked twice", b"Transfer-Encoding: chunked, chunked\r\n"),
        ("that is chunked on two lines", CHUNKED * 2),
        ("that is other, then chunked", b"Transfer-Encoding: x\r\n" + CHUNKED),
        ("that is empty, then chunked", b"Transfer-Encoding:\r\n" + CHUNKED),
        ("that is chunked, then other", CHUNKED + b"Transfer-Encoding: x\r\n"),
        ("xchunked", b"Transfer-Encoding: xchunked\r\n"),
        ("chunkedx", b"Transfer-Encoding: chunkedx\r\n"),
        ("with a parameter", b"Transfer-Encoding: chunked;q=1\r\n"),
        ("in quotes", b'Transfer-Encoding: "chunked"\r\n'),
        ("behind a vertical tab", b"Transfer-Encoding: \x0bchunked\r\n"),
        ("with a blank before the colon", b"Transfer-Encoding : chunked\r\n"),
        ("folded", b"Transfer-Encoding:\r\n chunked\r\n"),
        ("that ends with a comma", b"Transfer-Encoding: chunked,\r\n"),
    ):
        yield refused(f"a coding {name}", "6.1", LINE + HOST + field + b"\r\n" + CHUNKS)
    gzip = LINE + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS
    yield refused("gzip, then chunked", "6.1", gzip, 501)
    for field in (b"Chunked", b"CHUNKED", b" chunked ", b"\tchunked"):
        sent = LINE + HOST + b"Transfer-Encoding:%b\r\n\r\n" % field + CHUNKS
        yield accepted(f"{field!r}", "6.1", sent)


def chunks() -> Iterator[Case]:
    """RFC 9112, section 7.1, for a call and for a stream."""
    first, last = b"18\r\n" + EVENT + b"\r\n", b"0\r\n\r\n"
    good = (
        ("in one", first + last),
        ("in two", b"4\r\n" + EVENT[:4] + b"\r\n14\r\n" + EVENT[4:] + b"\r\n" + last),
        ("zeros before a size", b"00" + first + last),
        ("many zeros before a size", b"0" * 40 + first + last),
        ("several zeros at the end", first + b"000\r\n\r\n"),
        ("an extension", b"18;a=b\r\n" + EVENT + b"\r\n" + last),
        ("an extension without a value", b"18;a\r\n" + EVENT + b"\r\n" + last),
        ("two extensions", b"18;a=b;c=d\r\n" + EVENT + b"\r\n" + last),
        ("a quoted extension", b'18;a="b c"\r\n' + EVENT + b"\r\n" + last),
        ("an extension at the end", first + b"0;a=b\r\n\r\n"),
        ("a trailer", first + b"0\r\nA: b\r\n\r\n"),
        ("two trailers", first + b"0\r\nA: b\r\nC: d\r\n\r\n"),
    )
    bad = (
        ("a blank before the size", b" 18\r\n" + EVENT + b"\r\n" + last),
        ("a blank behind the size", b"18 \r\n" + EVENT + b"\r\n" + last),
        ("a tab behind the size", b"18\t\r\n" + EVENT + b"\r\n" + last),
        ("a blank before an extension", b"18 ;a\r\n" + EVENT + b"\r\n" + last),
        ("a sign", b"+18\r\n" + EVENT + b"\r\n" + last),
        ("a minus", b"-18\r\n" + EVENT + b"\r\n" + last),
        ("0x", b"0x18\r\n" + EVENT + b"\r\n" + last),
        ("an underscore", b"1_8\r\n" + EVENT + b"\r\n" + last),
        ("no size", b"\r\n" + EVENT + b"\r\n" + last),
        ("no hexadecimal", b"1g\r\n" + EVENT + b"\r\n" + last),
        ("a size above 64 bits", b"10000000000000018\r\n" + EVENT + b"\r\n" + last),
        ("a bare LF behind the size", b"18\n" + EVENT + b"\r\n" + last),
        ("a bare CR behind the size", b"18\r" + EVENT + b"\r\n" + last),
        ("a bare LF behind the content", b"18\r\n" + EVENT + b"\n" + last),
        ("nothing behind the content", b"18\r\n" + EVENT + last),
        ("more content than its size", b"17\r\n" + EVENT + b"\r\n" + last),
        ("an empty line before the end", first + b"\r\n" + last),
        ("a bare LF at the end", first + b"0\r\n\n"),
        ("NUL in an extension", b"18;\x00\r\n" + EVENT + b"\r\n" + last),
        ("a bare LF in an extension", b"18;a\n" + EVENT + b"\r\n" + last),
        ("a line end in a quoted extension", b'18;a="b\r\n"\r\n' + EVENT + b"\r\n" + last),
        ("an endless extension", b"18;" + b"a" * 20_000 + b"\r\n" + EVENT + b"\r\n" + last),
        ("a trailer with a blank before the colon", first + b"0\r\nA : b\r\n\r\n"),
        ("a trailer without a colon", first + b"0\r\nA\r\n\r\n"),
        ("a trailer without a name", first + b"0\r\n: b\r\n\r\n"),
        ("a folded trailer", first + b"0\r\n b\r\n\r\n"),
        ("NUL in a trailer", first + b"0\r\nA: \x00\r\n\r\n"),
        ("a length as a trailer", first + b"0\r\nContent-Length: 1\r\n\r\n"),
        ("endless trailers", first + b"0\r\nA: " + b"a" * 20_000 + b"\r\n\r\n"),
    )
    for kind in (b"publish", b"stream"):
        head = b"POST /api/%b HTTP/1.1\r\n" % kind + HOST + CHUNKED + b"\r\n"
        for name, body in good:
            yield accepted(f"{kind.decode()}: {name}", "7.1", head + body)
        for name, body in bad:
            yield refused(f"{kind.decode()}: {name}", "7.1", head + body)


def ends() -> Iterator[Case]:
    """RFC 9112, sections 9.3 and 9.6: a connection's last request, and bytes behind it."""
    close = b"Connection: close\r\n"
    old = LINE.replace(b"1.1", b"1.0")
    chunked = LINE + HOST + CHUNKED + close + b"\r\n" + CHUNKS
    for name, sent in (
        ("close", publish(close)),
        ("close in capitals", publish(b"CONNECTION: CLOSE\r\n")),
        ("close in a list", publish(b"Connection: x , close\r\n")),
        ("close on a second line", publish(b"Connection: keep-alive\r\nConnection: close\r\n")),
        ("close on a first line", publish(b"Connection: close\r\nConnection: keep-alive\r\n")),
        ("close of chunks", chunked),
        ("HTTP/1.0", publish(line=old)),
    ):
        yield accepted(name, "9.6", sent, kept=False)
        yield accepted(f"{name}, an empty line behind", "9.6", sent + b"\r\n", kept=False)
        yield accepted(f"{name}, noise behind", "9.6", sent + b"\x00noise\r\n\r\n", kept=False)
        yield accepted(f"{name}, a request behind", "9.6", sent + publish(), kept=False)
    yield accepted("keep-alive", "9.3", publish(b"Connection: keep-alive\r\n"))
    yield accepted("closed is not close", "9.6", publish(b"Connection: closed\r\n"))


def sequences() -> Iterator[Case]:
    """RFC 9112, section 9.3.2: answers in their order; the first fault ends the connection."""
    yield accepted("three calls at once", "9.3.2", publish() * 3, 3)
    mixed = LINE + HOST + CHUNKED + b"\r\n" + CHUNKS + publish()
    yield accepted("chunks, then a length", "9.3.2", mixed, 2)
    bad = publish(b"X : a\r\n")
    yield Case("a fault behind a call", "9.3.2", publish() + bad, (200, 400), False, 1)
    between = publish() + bad + publish()
    yield Case("a fault between calls", "11.2", between, (200, 400), False, 1)
    smuggled = LINE + HOST + LENGTH + CHUNKED + b"\r\n0\r\n\r\n" + publish()
    yield refused("a call behind two lengths", "11.2", smuggled)
    noise = publish() + b"\x16\x03\x01\x00"
    yield Case("noise behind a call", "11.2", noise, (200, 400), False, 1)
    other = b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: \r\n"
    yield accepted("an upgrade to HTTP/2", "RFC 9110, 7.8", publish(other))
    yield accepted("an upgrade to nothing known", "RFC 9110, 7.8", publish(b"Upgrade: x\r\n"))
    bare = b"GET /health HTTP/1.1\r\nHost: a\r\n" + other + b"\r\n"
    yield answered("an upgrade to HTTP/2 without a body", "RFC 9110, 7.8", bare + HEALTH, 200, 200)
    shake = (
        b"GET /ws?channel=a HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    yield refused("a handshake with a length", "RFC 6455, 4.1", shake + LENGTH + b"\r\n" + EVENT)
    yield refused("a handshake with chunks", "RFC 6455, 4.1", shake + CHUNKED + b"\r\n" + CHUNKS)
    yield refused("a handshake for two hosts", "3.2", shake + b"Host: b\r\n\r\n")
    yield refused(
        "a handshake of two pages", "RFC 6454", shake + b"Origin: http://a\r\n" * 2 + b"\r\n"
    )


CASES = tuple(
    case
    for group in (
        *(request_lines, versions, methods, hosts, targets, fields),
        *(lengths, codings, chunks, ends, sequences),
    )
    for case in group()
)
