"""The ways in: what a stranger sends by each of them, as the bytes of one connection."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from random import Random
from urllib.parse import quote

import h2.config
import h2.connection
import h2.errors
import h2.exceptions
from h2.settings import SettingCodes

from tests.fuzz import protobuf
from tests.fuzz.values import call, command, message, value
from tests.serving import UPGRADE, frame

KEY = "fuzz"
CONNECT = '{"connect":{},"id":1}'
PROTOBUF_CONNECT = b"\x04\x08\x01\x22\x00"  # the same: id 1, and a connect of no bytes
TARGETS = ("/", "/health", "/metrics", "/openapi.json", "//api/publish", "*", "http://t/ws")
PAGES = ("/health/live", "/openapi.json", "/events?channel=news")
HEADERS = (
    *("Content-Length", "Transfer-Encoding", "Expect", "Upgrade", "Connection", "Cookie"),
    *("X", " Y"),
)
CONTENTS = (
    *("0", "5", "-1", "chunked", "h2c", "websocket", "100-continue", "close", "\x00", ""),
    "a" * 3_000,
)
OFFER = "Sec-WebSocket-Extensions: permessage-deflate{}\r\n"
OFFERS = (
    *("", *[OFFER.format("")] * 3, OFFER.format("; client_max_window_bits")),
    *(OFFER.format("; server_max_window_bits=9"), OFFER.format(";a" * 100), OFFER.format(";")),
)
HEALTH = "GET /health/live HTTP/1.1\r\nHost: t\r\n\r\n"


def websocket(rng: Random) -> bytes:
    """A WebSocket, perhaps on a connection that was used before; then messages or frames."""
    plain = (f"/ws?channel=news{beginning}" for beginning in ("", _beginning(rng)))
    paths = (*plain, "/connection/websocket", "/connection/uni_websocket")
    head = UPGRADE.format(path=rng.choice(paths), more=rng.choice(OFFERS))
    reused = HEALTH * rng.choice((0, 0, 1))
    begun = frame(CONNECT.encode()) if rng.random() < 0.8 else b""
    return (reused + head).encode() + begun + _frames(rng)


def _frames(rng: Random) -> bytes:
    """Messages, control frames and fragments, in any order and number."""
    parts = list[bytes]()
    for _ in range(rng.randint(1, 4)):
        kind = rng.random()
        if kind < 0.45:
            parts.append(_text(message(rng).encode(errors="surrogatepass")))
        elif kind < 0.6:
            parts.append(_compressed(rng))
        elif kind < 0.75:
            parts.append(frame(b"", rng.choice((9, 10))) * rng.choice((1, 100, 2_000)))
        elif kind < 0.9:
            first = bytearray(frame(b"", 1))
            first[0] &= 0x7F
            rest = bytes([0]) + bytes(first[1:])
            parts.append(bytes(first) + rest * rng.choice((0, 10, 2_000)))
        else:
            parts.append(rng.randbytes(rng.choice((1, 2, 14, 200))))
    return b"".join(parts)


def _text(payload: bytes) -> bytes:
    if len(payload) < 65_536:
        return frame(payload)
    return b"\x81\xff" + len(payload).to_bytes(8) + bytes(4) + payload


def _compressed(rng: Random) -> bytes:
    """A compressed message, perhaps very long when inflated, in fragments, or damaged."""
    kind = rng.random()
    if kind < 0.4:
        text = message(rng).encode(errors="surrogatepass")
    elif kind < 0.7:
        text = rng.choice((b"a", b"\n", b"{}\n", b"\x00")) * rng.choice((100, 60_000, 20_000_000))
    else:
        text = rng.randbytes(rng.choice((0, 1, 100, 60_000)))
    stream = zlib.compressobj(rng.choice((0, 1, 9)), wbits=-rng.choice((9, 15)))
    data = stream.compress(text) + stream.flush(rng.choice((zlib.Z_SYNC_FLUSH, zlib.Z_FINISH)))
    if rng.random() < 0.7:
        data = data.removesuffix(b"\x00\x00\xff\xff")
    if rng.random() < 0.2 and data:
        at = rng.randrange(len(data))
        data = data[:at] + rng.randbytes(1) + data[at + 1 :]
    if len(data) >= 65_536:
        data = data[:65_000]
    pieces = (
        [data] if rng.random() < 0.6 else [data[at : at + 100] for at in range(0, len(data), 100)]
    )
    frames = [bytearray(frame(piece, 0 if at else 1)) for at, piece in enumerate(pieces or [b""])]
    for one in frames[:-1]:
        one[0] &= 0x7F
    frames[0][0] |= 0x40
    if rng.random() < 0.1:
        frames[-1][0] |= rng.choice((0x40, 0x20, 0x10))
    return b"".join(frames) * rng.choice((1, 1, 1, 50))


def stream(rng: Random) -> bytes:
    """A stream over HTTP, with the bodies, queries and headers that it reads."""
    path = rng.choice(
        ("/events", "/connection/sse", "/connection/uni_sse", "/connection/http_stream",
         "/connection/uni_http_stream", "/emulation")
    )  # fmt: skip
    reused = HEALTH * rng.choice((0, 0, 1))
    if rng.random() < 0.5:
        body = (message(rng) if rng.random() < 0.5 else value(rng)).encode(errors="surrogatepass")
        head = f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n"
        return (reused + head).encode() + body
    names = "&".join(f"channel={quote(value(rng)[:300])}" for _ in range(rng.choice((1, 3, 129))))
    names += _beginning(rng) if rng.random() < 0.3 else ""
    query = names if rng.random() < 0.5 else f"cf_connect={quote(command(rng))}"
    extra = rng.choice(
        ("", f"Last-Event-ID: {quote(value(rng)[:3_000])}\r\n", _cookie(rng), "Origin: null\r\n")
    )
    return f"{reused}GET {path}?{query} HTTP/1.1\r\nHost: t\r\n{extra}\r\n".encode()


def _beginning(rng: Random) -> str:
    """What a plain client says of its beginning, or something like it."""
    since = rng.choice(
        ("start", f"last:{10 ** rng.randrange(25)}", "time:2026-11-25T20:00:00Z", "F1yfJc_W:e:Ag",
         f"time:{value(rng)[:40]}", value(rng)[:300])
    )  # fmt: skip
    return f"&envelope={rng.choice('0112')}&since={quote(since, errors='surrogatepass')}"


def _cookie(rng: Random) -> str:
    piece = rng.choice(("\\", '"', ";", "=", "a=b;", 'x="\\"; ', "repeater_token=;", "é"))
    return f"Cookie: repeater_token={piece * rng.choice((1, 50, 3_000))}\r\n"


def protobuf_websocket(rng: Random) -> bytes:
    """A WebSocket in Protobuf: messages, and now and then one in text."""
    head = UPGRADE.format(path="/connection/websocket?format=protobuf", more="")
    begun = frame(PROTOBUF_CONNECT, 2) if rng.random() < 0.8 else b""
    parts = [_binary(protobuf.message(rng)) for _ in range(rng.randint(1, 6))]
    if rng.random() < 0.1:
        parts.insert(rng.randrange(len(parts) + 1), frame(b"{}"))
    return head.encode() + begun + b"".join(parts)


def _binary(payload: bytes) -> bytes:
    framed = _text(payload)
    return bytes((framed[0] + 1,)) + framed[1:]  # the opcode of binary data, 2 and not 1


def protobuf_stream(rng: Random) -> bytes:
    """A stream in Protobuf, or a message for one that is not there; then perhaps the next one."""
    parts = list[bytes]()
    for _ in range(rng.choice((1, 1, 3))):
        path = rng.choice(("/connection/http_stream", "/connection/sse", "/emulation"))
        body = protobuf.message(rng)
        if path == "/emulation":
            body = (
                b"".join(
                    protobuf.field(number, content)
                    for number, content in enumerate((b"n", b"s", body), 1)
                )
                if rng.random() < 0.7
                else body
            )
        elif rng.random() < 0.7:
            body = PROTOBUF_CONNECT
        head = (
            f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Type: application/octet-stream\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        parts.append(head.encode() + body)
    return b"".join(parts)


def api(rng: Random) -> bytes:
    """Calls of the server API, with the key: a back end passes strangers' text on."""
    parts = list[bytes]()
    for _ in range(rng.choice((1, 1, 2, 30))):
        method, text = call(rng)
        body = text.encode(errors="surrogatepass")
        if rng.random() < 0.2:
            method = "stream"
            body = b"\n".join([body.replace(b"\n", b"")] * rng.choice((1, 50)))
        head = f"POST /api/{method} HTTP/1.1\r\nHost: t\r\n"
        if rng.random() < 0.9:
            head += f"X-API-Key: {KEY}\r\n"
        if rng.random() < 0.3:
            head += "Transfer-Encoding: chunked\r\n\r\n"
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        else:
            head += f"Content-Length: {len(body)}\r\n\r\n"
        parts.append(head.encode() + body)
    return b"".join(parts)


def http(rng: Random) -> bytes:
    """Requests with a fault somewhere, or a great number of good ones whose answers gather."""
    if rng.random() < 0.3:
        return HEALTH.encode() * rng.choice((1, 20, 400))
    method = rng.choice(("GET", "POST", "post", "OPTIONS", "X", ""))
    lines = [f"{method} {rng.choice(TARGETS)} HTTP/1.{rng.choice('019')}"]
    lines += ["Host: t"] * rng.choice((1, 1, 1, 0, 2))
    for _ in range(rng.choice((0, 1, 3, 200))):
        lines.append(f"{rng.choice(HEADERS)}: {rng.choice(CONTENTS)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + rng.randbytes(rng.choice((0, 5, 300)))


def noise(rng: Random) -> bytes:
    """Bytes that are not a request."""
    return rng.randbytes(rng.choice((1, 10, 1_000, 30_000)))


PLAIN: tuple[Callable[[Random], bytes], ...] = (
    *(websocket, websocket, protobuf_websocket, stream, protobuf_stream, api, http, noise),
)


def http2(rng: Random) -> bytes:
    """A connection of HTTP/2: its preface, then streams and control frames in great number."""
    http = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
    http.initiate_connection()
    if rng.random() < 0.3:
        http.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: rng.choice((0, 1, 65_535))})
    flood = rng.choice(("settings", "ping", "reset", "requests", "bytes", "window", "priority"))
    try:
        for number in range(rng.choice((1, 20, 200, 1_200))):
            _step(http, rng, flood, 2 * number + 1)
    except h2.exceptions.ProtocolError:
        pass  # the library would not send more of this; what it has made is sent
    sent = http.data_to_send()
    return sent + rng.randbytes(9) if rng.random() < 0.1 else sent


def _step(http: h2.connection.H2Connection, rng: Random, flood: str, stream_id: int) -> None:
    match flood:
        case "settings":
            http.update_settings({SettingCodes.HEADER_TABLE_SIZE: rng.choice((0, 4_096))})
        case "ping":
            http.ping(b"12345678")
        case "priority":
            http.prioritize(stream_id, weight=rng.randint(1, 256))
        case "window":
            http.increment_flow_control_window(1)
        case _:
            head = [(":method", "GET"), (":scheme", "https"), (":authority", "t")]
            head.append(
                (":path", rng.choice(("/health/live", "/openapi.json", "/events?channel=news")))
            )
            if flood == "bytes":
                head.append(("x", "a" * rng.choice((1, 5_000))))
            http.send_headers(stream_id, head, end_stream=True)
            if flood == "reset":
                http.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
