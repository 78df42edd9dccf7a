"""The opening handshake, and who may pass it."""

from __future__ import annotations

import gc
from http import HTTPStatus

import pytest

from service.auth import origin_allowed, wants_protobuf
from service.protocol.handshake import Handshake, answer_handshake


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


def answer(request: bytes, refusal: HTTPStatus | None = None) -> Handshake:
    return answer_handshake(request, lambda _origin, _host: refusal)


def test_correct_handshake_is_accepted() -> None:
    """The RFC's own example gets 101 and the RFC's accept value."""
    handshake = answer(head())
    assert handshake.accepted
    assert handshake.answer.startswith(b"HTTP/1.1 101 ")
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in handshake.answer
    assert handshake.answer.endswith(b"\r\n\r\n")


def test_deflate_is_never_negotiated() -> None:
    """An offered extension is not taken: a compressed frame could not be shared."""
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    handshake = answer(head(offer))
    assert handshake.accepted
    assert b"extensions" not in handshake.answer.lower()


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


def test_check_refuses_with_its_status() -> None:
    """A correct handshake that the check refuses gets the check's status."""
    handshake = answer(head("Origin: https://evil.example"), HTTPStatus.FORBIDDEN)
    assert not handshake.accepted
    assert handshake.answer.startswith(b"HTTP/1.1 403 ")


def test_check_sees_origin_and_host() -> None:
    """The check is given both headers; a doubled origin is refused before it."""
    seen: list[tuple[str | None, str | None]] = []

    def check(origin: str | None, host: str | None) -> HTTPStatus | None:
        seen.append((origin, host))
        return None

    answer_handshake(head("Origin: https://a"), check)
    answer_handshake(head(), check)
    assert not answer_handshake(head("Origin: a", "Origin: b"), check).accepted
    assert seen == [("https://a", "example.com"), (None, "example.com")]


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head(upgrade=False), b"426"),
        (head(method="POST"), b"4"),
        (b"nonsense\r\n\r\n", b"400"),
        (head().replace(b"Version: 13", b"Version: 8"), b"4"),
    ],
)
def test_incorrect_handshake_is_refused(request_head: bytes, status: bytes) -> None:
    """What is no handshake gets a 4xx answer, and the check is not asked."""
    handshake = answer_handshake(request_head, lambda *_: pytest.fail("asked"))
    assert not handshake.accepted
    assert handshake.answer.startswith(b"HTTP/1.1 " + status)


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
        ("null", ("*",), True),
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
    assert wants_protobuf({"format": ["protobuf"]})
    assert wants_protobuf({"cf_protocol": ["protobuf"]})
    assert not wants_protobuf({"format": ["json"]})


def test_nothing_is_left_to_the_garbage_collector() -> None:
    """A mass reconnect's handshakes are freed at once, with the requests that they answered."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            answer(head("Sec-WebSocket-Protocol: centrifuge-json"))
        assert gc.collect() == 0
    finally:
        gc.enable()
