"""The adapters of servers that are not Python's: what they send, and that the servers like it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from urllib.parse import parse_qs, urlsplit

import h11
import jwt
import pytest

from benchmarks.generator.load import Crowd
from benchmarks.generator.protocol import Entry, Greeting
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Deliveries
from benchmarks.generator.wire import WireError, client_frame, event, event_numbers
from benchmarks.peers import centrifugo, mercure, nats, nchan
from benchmarks.peers.installed import major_in, printed, version_in
from benchmarks.peers.peer import Peer
from benchmarks.peers.registry import PEERS
from benchmarks.servers import Child, started
from benchmarks.workloads.fanout import WORKLOADS
from tests.deadlines import LOOP_ANSWERS
from tests.processes import starts_processes

pytestmark = starts_processes

_PEERS = (nchan.NCHAN, nchan.NCHAN_SSE, nats.NATS, centrifugo.CENTRIFUGO, mercure.MERCURE)
_BOTH = ("news", "sport")


@pytest.fixture(params=_PEERS, ids=lambda peer: str(peer.name))
def peer(request: pytest.FixtureRequest) -> Peer:
    peer: Peer = request.param
    if reason := peer.missing():
        pytest.skip(reason)
    return peer


@contextlib.contextmanager
def _publisher(child: Child, entry: Entry) -> Iterator[Publisher]:
    with contextlib.closing(Publisher(child.port, entry)) as publisher:
        yield publisher


def test_a_subscriber_of_two_channels_hears_both_in_order(peer: Peer) -> None:
    """Three subscribers of two channels hear twenty events, alternately of one and the other."""
    with started(peer) as child, Crowd(child.port) as crowd:
        crowd.open(3, peer.subscribe(_BOTH))
        deliveries = Deliveries(crowd)
        with (
            _publisher(child, peer.entry(["news"])) as news,
            _publisher(child, peer.entry(["sport"])) as sport,
        ):
            for publisher in (news, sport):
                deliveries.watch(publisher)
            for number in range(20):
                deliveries.publish((news, sport)[number % 2])
                deliveries.finish(LOOP_ANSWERS)
        assert len(deliveries.latencies_ns) == 60


def test_an_event_for_two_channels_reaches_the_subscribers_of_each(peer: Peer) -> None:
    """What one publisher puts into two channels, the subscribers of one and of the other hear."""
    with started(peer) as child, Crowd(child.port) as crowd:
        crowd.open(2, peer.subscribe(["news"]))
        crowd.open(1, peer.subscribe(["sport"]))
        deliveries = Deliveries(crowd)
        with _publisher(child, peer.entry(_BOTH)) as publisher:
            deliveries.watch(publisher)
            for _ in range(5):
                deliveries.publish(publisher)
            deliveries.finish(LOOP_ANSWERS)
        assert len(deliveries.latencies_ns) == 15


def test_a_flood_is_taken_event_by_event(peer: Peer) -> None:
    """Events that are written together are all answered, if they are answered, and all heard."""
    events = [event(number) for number in range(200)]
    with started(peer) as child, Crowd(child.port) as crowd:
        crowd.open(1, peer.subscribe(["news"]))
        (fd,) = crowd.sockets
        heard = list[int]()
        with _publisher(child, peer.flooding(["news"])) as publisher:
            crowd.poller.register(publisher.fileno())
            publisher.send(publisher.encode(events, 0), len(events))
            while len(heard) < len(events) or publisher.waiting:
                for ready, _ in crowd.poller.poll(5, 1):
                    if ready == fd:
                        data = crowd.sockets[fd].recv(65_536)
                        heard += [n for one in crowd.frames(fd, data) for n in event_numbers(one)]
                    else:
                        publisher.go_on()
                        publisher.ready()
        assert heard == list(range(200))


def test_the_server_says_its_version(peer: Peer) -> None:
    """A peer that is there has a version, and a configuration to show."""
    assert peer.version()[0].isdigit()
    assert "PORT" in peer.configuration()


def test_the_registry_has_them_all() -> None:
    """Each can be chosen by name, and Nchan's other transport takes part in one fan-out."""
    for peer in _PEERS:
        assert PEERS[peer.name] is peer
    taking = [one.name for one in WORKLOADS if one.skips(nchan.NCHAN_SSE) is None]
    assert taking == ["fanout-1000"]


def _read(data: bytes) -> tuple[h11.Request, bytes]:
    """One request and its body, as a strict parser reads them; nothing may be left over."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request, body = connection.next_event(), b""
    assert isinstance(request, h11.Request)
    while isinstance(part := connection.next_event(), h11.Data):
        body += bytes(part.data)
    assert isinstance(part, h11.EndOfMessage)
    assert connection.trailing_data == (b"", False)
    return request, body


def _upgrade(greeting: Greeting) -> h11.Request:
    request, _ = _read(greeting.request)
    assert dict(request.headers)[b"upgrade"] == b"websocket"
    return request


def test_centrifugo_is_configured_in_json() -> None:
    """With a port put in it is JSON, and the port a number."""
    settings = json.loads(centrifugo.CENTRIFUGO.configuration().replace("PORT", "8000"))
    assert settings["http_server"] == {"address": "127.0.0.1", "port": 8000}
    assert settings["client"]["allow_anonymous_connect_without_token"] is True


@pytest.mark.parametrize(
    ("channels", "path", "named"),
    [
        (["news"], b"/api/publish", {"channel": "news"}),
        (_BOTH, b"/api/broadcast", {"channels": list(_BOTH)}),
    ],
)
def test_centrifugo_is_published_to_with_its_key(
    channels: Sequence[str], path: bytes, named: dict[str, object]
) -> None:
    """Requests of the HTTP API carry the configured key and the event as JSON."""
    one = event(7)
    request, body = _read(centrifugo.CENTRIFUGO.entry(channels).encode([one], 0))
    key = json.loads(centrifugo.CENTRIFUGO.configuration().replace("PORT", "1"))["http_api"]["key"]
    assert (request.method, request.target) == (b"POST", path)
    assert dict(request.headers)[b"x-api-key"] == key.encode()
    assert json.loads(body) == {"data": json.loads(one), **named}


def test_mercure_is_published_to_with_a_token_it_can_verify() -> None:
    """The bearer token is one of RFC 9068 for this hub, and the form carries the event."""
    one = event(7)
    request, body = _read(mercure.MERCURE.entry(_BOTH).encode([one], 0))
    headers = dict(request.headers)
    scheme, _, token = headers[b"authorization"].decode().partition(" ")
    configured = mercure.MERCURE.configuration().split()
    claims = jwt.decode(
        token,
        configured[configured.index("jwt") + 1],
        algorithms=["HS256"],
        audience=configured[configured.index("resource_identifier") + 1],
        issuer=configured[configured.index("issuer") + 1],
        options={"require": ["exp", "iat", "sub", "jti"]},
    )
    assert scheme == "Bearer"
    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"
    assert claims["authorization_details"][0]["actions"] == ["publish"]
    assert headers[b"content-type"] == b"application/x-www-form-urlencoded"
    assert parse_qs(body.decode()) == {"topic": list(_BOTH), "data": [one.decode()]}


def test_mercure_is_subscribed_to_by_exact_topics() -> None:
    """Each channel is a `match` of one request for Server-Sent Events."""
    request, _ = _read(mercure.MERCURE.subscribe(_BOTH).request)
    target = urlsplit(request.target.decode())
    assert dict(request.headers)[b"accept"] == b"text/event-stream"
    assert (target.path, parse_qs(target.query)) == ("/.well-known/mercure", {"match": list(_BOTH)})


def test_mercure_s_configuration_is_balanced() -> None:
    """Every brace that a line opens, another line closes."""
    text = mercure.MERCURE.configuration()
    assert (
        text.count("{") == text.count("}") == sum(line.strip() == "}" for line in text.splitlines())
    )


def test_nats_hears_its_own_protocol_in_binary_frames() -> None:
    """A subscriber sends one line for each channel; an event goes into each of them."""
    greeting = nats.NATS.subscribe(_BOTH)
    _upgrade(greeting)
    assert greeting.commands.endswith(b"\r\nSUB news 1\r\nSUB sport 2\r\nPING\r\n")
    assert greeting.commands[0] == 0x82
    expected = b"PUB news 2\r\n{}\r\nPUB sport 2\r\n{}\r\n"
    assert nats.NATS.entry(_BOTH).encode([b"{}"], 0) == client_frame(expected, opcode=2)


def test_nchan_takes_no_more_channels_than_its_documentation_says() -> None:
    """255 in one request; more are the caller's error."""
    many = [str(number) for number in range(256)]
    request = _upgrade(nchan.NCHAN.subscribe(many[:255]))
    assert request.target.count(b",") == 254
    with pytest.raises(ValueError, match="256 channels"):
        nchan.NCHAN.subscribe(many)


def test_a_payload_may_hold_several_events() -> None:
    """All their numbers are found, in order; what holds none has none."""
    joined = b"MSG news 1 60\r\n" + event(3) + b"\r\nMSG news 1 60\r\n" + event(12) + b"\r\n"
    assert event_numbers(joined) == [3, 12]
    assert event_numbers(b"PONG\r\n") == []


def test_versions_are_found_in_what_programs_print() -> None:
    """A package's epoch and a name before the number do not count; nothing printed is unknown."""
    assert version_in("1:1.3.6+dfsg-2") == "1.3.6"
    assert version_in("nats-server: v2.15.1") == "2.15.1"
    assert version_in(printed("/nonexistent")) == "of unknown version"
    assert (major_in("Centrifugo v6.2.3 (Go version: go1.24)"), major_in("")) == (6, None)


_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _update(number: int) -> bytes:
    return _chunk(b"id: urn:uuid:%d\ndata: %s\n\n" % (number, event(number)))


@contextlib.contextmanager
def _chunked(parts: Sequence[bytes]) -> Iterator[int]:
    """A server that answers its one client in these parts, each when the last was taken."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.recv(65_536)
                # It may leave as soon as it has what it wants, before the last part's end.
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    client.sendall(_HEAD + _chunk(b":\n"))
                    for part in parts:
                        client.sendall(part)
                    client.recv(1)  # until it leaves

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # if nobody has come
            thread.join(LOOP_ANSWERS)


def test_a_chunked_stream_is_understood() -> None:
    """Counting works with chunks' sizes and ends, with heartbeats, and with chunks cut anywhere."""
    whole = _update(0) + _chunk(b":\n") + _update(1) + _update(2)
    cut = [whole[at : at + 5] for at in range(0, len(whole), 5)]
    with _chunked(cut) as port, Crowd(port) as crowd:
        crowd.open(1, mercure.MERCURE.subscribe(["news"]))
        (fd,) = crowd.sockets
        heard = list[int]()
        data = b""  # some may have come with the head
        while True:
            payloads = crowd.frames(fd, data)
            heard += [number for payload in payloads for number in event_numbers(payload)]
            if len(heard) >= 3:
                break
            assert crowd.poller.poll(LOOP_ANSWERS), "nothing came"
            data = crowd.sockets[fd].recv(7)
        assert heard == [0, 1, 2]


def test_a_refused_subscriber_is_an_error() -> None:
    """An answer that is not a stream is reported as it is."""
    with _chunked([]) as port, Crowd(port) as crowd, pytest.raises(WireError, match="refused"):
        crowd.open(1, nats.NATS.subscribe(["news"]))
