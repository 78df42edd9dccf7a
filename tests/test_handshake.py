"""The opening handshake, and who may pass it."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Sequence
from http import HTTPStatus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from repeater.access.origins import origin_allowed
from repeater.front.request import Request as OurRequest
from repeater.protocol.http.fault import find_fault
from repeater.protocol.http.head import read_head
from repeater.protocol.websocket import handshake as module
from repeater.protocol.websocket.handshake import Handshake, answer_handshake


def head(*lines: str, method: str = "GET", upgrade: bool = True) -> bytes:
    fixed = [f"{method} /ws HTTP/1.1", "Host: example.com"]
    if upgrade:
        fixed += [
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        ]
    return "\r\n".join([*fixed, *lines, "", ""]).encode()


def answer(request: bytes) -> Handshake:
    return answer_handshake(read_head(request))


def deflating(request: bytes) -> Handshake:
    return answer_handshake(read_head(request), deflate=True)


def test_correct_handshake_is_accepted() -> None:
    """The RFC's own example gets 101 and the RFC's accept value."""
    handshake = answer(head())
    assert handshake.accepted
    assert handshake.answer.startswith(b"HTTP/1.1 101 ")
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in handshake.answer
    assert handshake.answer.endswith(b"\r\n\r\n")


def test_deflate_is_negotiated_only_where_it_is_wanted() -> None:
    """By default nobody looks at the extensions, not even at malformed ones."""
    for offer in ("permessage-deflate; client_max_window_bits", ";;", "a;" * 100):
        handshake = answer(head(f"Sec-WebSocket-Extensions: {offer}"))
        assert handshake.accepted
        assert not handshake.deflates
        assert b"extensions" not in handshake.answer.lower()


AGREED = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("offer", "agreed"),
    [
        ("permessage-deflate", AGREED),
        ("permessage-deflate; client_max_window_bits", AGREED),
        ("permessage-deflate; client_no_context_takeover; server_no_context_takeover", AGREED),
        ("permessage-deflate; client_max_window_bits=9", f"{AGREED}; client_max_window_bits=9"),
        ('permessage-deflate; client_max_window_bits="9"', f"{AGREED}; client_max_window_bits=9"),
        ("permessage-deflate; server_max_window_bits=15", f"{AGREED}; server_max_window_bits=15"),
        ("x-webkit-deflate-frame, permessage-deflate", AGREED),
        # Declined: a smaller window of the server.
        *((f"permessage-deflate; server_max_window_bits={bits}", "") for bits in range(8, 15)),
        # Declined, but the client has a second offer, also in a second header.
        ("permessage-deflate; server_max_window_bits=10, permessage-deflate", AGREED),
        ("permessage-deflate; server_max_window_bits=10\r\nX: y\r\n"
         "Sec-WebSocket-Extensions: permessage-deflate", AGREED),
        # Declined: parameters that are unknown, doubled, or have impossible values (RFC 7692, 7.1).
        ("permessage-deflate; x", ""),
        ("permessage-deflate; server_no_context_takeover=1", ""),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", ""),
        ("permessage-deflate; client_max_window_bits=16", ""),
        ("permessage-deflate; client_max_window_bits=09", ""),
        ("permessage-deflate; server_max_window_bits", ""),
        ("deflate", ""),
    ],
)  # fmt: skip
def test_what_is_agreed_on(offer: str, agreed: str) -> None:
    """No context takeover, whatever was offered; declined is not refused."""
    handshake = deflating(head(f"Sec-WebSocket-Extensions: {offer}"))
    assert handshake.accepted
    assert handshake.deflates is bool(agreed)
    said = re.findall(rb"(?i)sec-websocket-extensions: ([^\r]*)", handshake.answer)
    assert said == ([agreed.encode()] if agreed else [])


@pytest.mark.parametrize("offer", [";;", "permessage-deflate; client_max_window_bits=", "a b", "="])
def test_a_malformed_offer_is_refused(offer: str) -> None:
    """RFC 6455, section 9.1: the connection fails. It may be read only where it is used."""
    for _ in range(2):
        handshake = deflating(head(f"Sec-WebSocket-Extensions: {offer}"))
        assert not handshake.accepted
        assert handshake.answer.startswith(b"HTTP/1.1 400 ")


def test_long_offers_are_not_remembered() -> None:
    """What strangers send takes no memory; a list that takes milliseconds is refused."""
    before = module._remembered_offer.cache_info().currsize
    for number in range(10):
        offer = f"permessage-deflate, {'x' * 300}{number}"
        assert deflating(head(f"Sec-WebSocket-Extensions: {offer}")).deflates
    assert module._remembered_offer.cache_info().currsize == before
    for offer in ("permessage-deflate" + "; a" * 65, "permessage-deflate," * 65):
        for lines in ([offer], [offer[: len(offer) // 2].strip(",;")] * 3):
            handshake = deflating(head(*(f"Sec-WebSocket-Extensions: {line}" for line in lines)))
            assert handshake.answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (None, None),
        ("centrifuge-json", "centrifuge-json"),
        ("centrifuge-protobuf", "centrifuge-protobuf"),
        ("centrifuge-protobuf, centrifuge-json", "centrifuge-json"),
        ("chat", None),
    ],
)
def test_subprotocol(offered: str | None, chosen: str | None) -> None:
    """JSON before protobuf; protobuf is selected only where it is all that is offered."""
    handshake = answer(head(*([f"Sec-WebSocket-Protocol: {offered}"] if offered else [])))
    assert handshake.accepted
    assert handshake.subprotocol == chosen


def test_a_doubled_origin_is_refused() -> None:
    """Which of the two would count is guesswork."""
    assert not answer(head("Origin: a", "Origin: b")).accepted


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head(upgrade=False), b"426"),
        (head(method="POST"), b"4"),
        (head().replace(b"Version: 13", b"Version: 8"), b"4"),
    ],
)
def test_incorrect_handshake_is_refused(request_head: bytes, status: bytes) -> None:
    """An invalid handshake gets a 4xx answer."""
    handshake = answer(request_head)
    assert not handshake.accepted
    assert handshake.answer.startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("name", ["Connection", "Upgrade", "Sec-WebSocket-Protocol"])
def test_a_long_list_is_refused(name: str) -> None:
    """The library would take milliseconds for it; other headers may have any lists."""
    for lines in ([f"{name}: " + "a," * 100], [f"{name}: a,"] * 100):
        handshake = answer(head(*lines))
        assert handshake.answer.startswith(b"HTTP/1.1 400 ")
        assert not handshake.accepted
    assert answer(head(f"Accept-Language: {'a,' * 100}")).accepted


def test_a_head_beyond_the_library_s_limits_is_left_to_others() -> None:
    """No answer: whoever knows all of HTTP gives one."""
    for odd in (b"nonsense\r\n\r\n", head("Cookie: " + "a" * 9_000), head(*["X: y"] * 200)):
        handshake = answer(odd)
        assert (handshake.answer, handshake.accepted) == (b"", False)


LIKELY: dict[str, Sequence[str]] = {
    "Host": ("example.com", "[::1]:80", ""),
    "Origin": ("https://example.com", "null", "https://a\xe9"),
    "Upgrade": ("websocket", "WebSocket", "websocket, h2c", "h2c", "websocket/13", ""),
    "Connection": ("Upgrade", "keep-alive, upgrade", ", Upgrade,", "close", "Upgrade @", ""),
    "Sec-WebSocket-Key": (
        *("dGhlIHNhbXBsZSBub25jZQ==", "AAAAAAAAAAAAAAAAAAAAAA==", "AAAAAAAAAAAAAAAAAAAAAB=="),
        *("AAAAAAAAAAAAAAAAAAAAAA", "AAAA", "dGhl IHNhbXBsZSBub25jZQ==", "\xe9", ""),
    ),
    "Sec-WebSocket-Version": ("13", "8", "13, 8", "013", ""),
    "Sec-WebSocket-Protocol": (
        *("centrifuge-json", "centrifuge-protobuf", "centrifuge-protobuf,centrifuge-json"),
        *("chat", "chat, , centrifuge-json", "two words", ""),
    ),
    "Sec-WebSocket-Extensions": (
        *("permessage-deflate; client_max_window_bits", "permessage-deflate", ";;"),
        *("permessage-deflate; server_max_window_bits=15", "permessage-deflate; x", "a, b"),
    ),
    "Content-Length": ("0", "5", "0, 0"),
    "Transfer-Encoding": ("chunked",),
    "Expect": ("100-continue",),
    "Cookie": ("a=b; c=d", "x" * 8_200),
}
NEEDED = tuple(name for name in LIKELY if name in head().decode())
TARGETS = ("/ws?channel=news", "*", "http://a/ws", "ws", "/\xe9", "/a b", "")


@st.composite
def lines(draw: st.DrawFn) -> str:
    """A header line as somebody might send it."""
    name = draw(st.sampled_from(sorted(LIKELY)))
    anything = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=8)
    value = draw(st.sampled_from(LIKELY[name]) | anything)
    written = draw(st.sampled_from((name, name.lower(), name.upper())))
    return f"{written}:{draw(st.sampled_from(('', ' ', chr(9))))}{value}{draw(BLANKS)}"


BLANKS = st.sampled_from(("", "", "", " ", "\t "))
NOISE = st.tuples(
    st.floats(0, 1),
    st.integers(0, 2),
    st.sampled_from([b"", b"\r\n", b"\n", b"\r", *map(bytes, zip(range(256), strict=True))]),
)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A request head: mostly correct, then less so, then noise."""
    method, version = draw(st.sampled_from((("GET", "HTTP/1.1"),) * 6 + ODD))
    target = draw(st.sampled_from((TARGETS[0],) * 6 + TARGETS))
    needed = [f"{name}: {LIKELY[name][0]}" for name in NEEDED]
    kept = [line for line in needed if draw(st.integers(0, 15))]
    headers = draw(st.permutations([*kept, *draw(st.lists(lines(), max_size=3))]))
    headers += ["X: y"] * draw(st.sampled_from((0,) * 8 + (122, 128, 129)))
    text = "\r\n".join([f"{method} {target} {version}", *headers, "", ""]).encode("latin-1")
    for place, dropped, put in draw(st.lists(NOISE, max_size=2)):
        at = round(place * len(text))
        text = text[:at] + put + text[at + dropped :]
    before, end, _ = text.partition(b"\r\n\r\n")
    return before + end


ODD = (("POST", "HTTP/1.1"), ("get", "HTTP/1.1"), ("GET", "HTTP/1.0"), ("GET", "HTTP/2.0"))


def by_the_library(request: bytes, *, deflate: bool) -> Handshake:
    """What `websockets` alone makes of the bytes, in its ordinary way."""
    ours = (Subprotocol("centrifuge-json"), Subprotocol("centrifuge-protobuf"))
    server = ServerProtocol(
        subprotocols=ours,
        select_subprotocol=lambda _, offered: next((one for one in ours if one in offered), None),
        extensions=[ServerPerMessageDeflateFactory(True, True)] if deflate else None,
        logger=logging.getLogger("repeater.websocket.handshake"),
    )
    server.receive_data(request)
    events = server.events_received()
    if not events or not isinstance(events[0], Request):
        return Handshake(b"", accepted=False)
    response = server.accept(events[0])
    accepted = response.status_code == HTTPStatus.SWITCHING_PROTOCOLS
    return Handshake(
        response.serialize(), accepted, server.subprotocol, accepted and bool(server.extensions)
    )


@settings(max_examples=400)
@given(request=heads(), deflate=st.booleans())
@example(request=head(), deflate=True)
@example(request=head().replace(b"\r\nHost", b"\nHost"), deflate=False)
@example(request=head().replace(b"example", b"ex\r\n ample"), deflate=False)
@example(request=b"\r\n" + head(), deflate=False)
@example(request=head().replace(b"GET ", b"GET  "), deflate=False)
@example(request=head("Sec-WebSocket-Extensions: permessage-deflate, ;"), deflate=True)
def test_verdict_is_the_library_s(request: bytes, *, deflate: bool) -> None:
    """Any head without a fault gets the answer that `websockets` gives to its bytes, undated."""
    if find_fault(read_head(request)) is not None:
        assert answer(request) == Handshake(b"", accepted=False)
        return
    ours = answer_handshake(read_head(request), deflate=deflate)
    theirs = by_the_library(request, deflate=deflate)
    assert undated(ours.answer) == undated(theirs.answer)
    assert ours.accepted == theirs.accepted
    assert ours.subprotocol == theirs.subprotocol
    assert ours.deflates == theirs.deflates


def undated(response: bytes) -> bytes:
    return re.sub(rb"(?i)date: [^\r]*\r\n", b"", response)


def test_browser_s_head_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a browser sends is answered from the head that was read already."""
    monkeypatch.setattr(module, "_answer_bytes", lambda *_: pytest.fail("read again"))
    browser = (
        *("User-Agent: Mozilla/5.0", "Origin: https://example.com", "Cache-Control: no-cache"),
        *("Accept-Encoding: gzip, deflate, br", "Accept-Language: de,en", "Cookie: a=b; c=d"),
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    )
    request = head(*browser).replace(b"Connection: Upgrade", b"Connection: keep-alive, Upgrade")
    assert answer(request).accepted
    assert deflating(request).deflates


@pytest.mark.parametrize(
    ("origin", "allowed", "expected"),
    [
        (None, (), True),
        ("https://example.com", (), True),
        ("https://evil.example", (), False),
        ("https://a.friend.org", ("https://*.friend.org",), True),
        ("HTTPS://A.Friend.org", ("https://*.friend.org",), True),
        ("https://friend.org.evil", ("https://*.friend.org",), False),
        ("null", (), False),
        ("null", ("null",), True),
        ("", (), False),
    ],
)
def test_origin(origin: str | None, allowed: tuple[str, ...], expected: bool) -> None:
    """No header, the own host or a matching glob may connect; no other page may."""
    assert origin_allowed(origin, "example.com", allowed) is expected


def test_empty_origin_is_not_the_empty_host() -> None:
    """An origin without a host does not pass as the own host of a request without one."""
    assert not origin_allowed("null", "", ())


def test_protobuf_by_address() -> None:
    """Either query parameter asks for protobuf."""
    for query, asked in ((b"format=protobuf", True), (b"cf_protocol=protobuf", True), (b"", False)):
        request = OurRequest("GET", "/connection/websocket", query, [], {})
        assert request.wants_protobuf() is asked


def test_nothing_is_left_to_the_garbage_collector() -> None:
    """A mass reconnect's handshakes are freed at once, with the requests that they answered."""
    while gc.collect():
        pass  # what other tests left, and what that held
    gc.disable()
    try:
        for _ in range(10):
            answer(head("Sec-WebSocket-Protocol: centrifuge-json"))
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_target_with_a_fragment_is_a_fault() -> None:
    """Clients never send a fragment (RFC 9112, section 3.2): Hypercorn's path answers with 400."""
    assert answer(head()).accepted
    assert answer(head().replace(b"/ws", b"/ws#")) == Handshake(b"", accepted=False)
