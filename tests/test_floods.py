"""The attackers of the benchmark `hostile`: their bytes are what they claim, and they come back."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import h2.config
import h2.connection
import h2.events
import pytest
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol

from benchmarks.generator import floods
from benchmarks.generator.attack import Attack, Connection, Order
from benchmarks.generator.floods import Flood, Step
from benchmarks.generator.honest import HealthChecks, HonestDeliveries, SteadyPublisher
from benchmarks.generator.load import Crowd
from benchmarks.generator.protocol import Entry, Greeting
from benchmarks.generator.wire import event, server_frame
from benchmarks.model import METRICS
from benchmarks.peers.registry import PEERS
from benchmarks.peers.repeater import centrifugo, plain
from benchmarks.workloads.hostile import hostile
from benchmarks.workloads.hostile_kinds import FLOODED, KINDS
from benchmarks.workloads.registry import WORKLOADS
from tests.deadlines import LOOP_ANSWERS
from tests.processes import starts_processes

MESSAGE_LIMIT = 65_536
HEAD_LIMIT = 16_384
PLAIN = plain([floods.ATTACK_CHANNEL])
KIND = {kind.name: kind for kind in KINDS}


def frames_in(data: bytes) -> list[Frame]:
    """The frames that a server reads in these bytes."""
    server = Protocol(SERVER, max_size=MESSAGE_LIMIT)
    server.receive_data(data)
    return [one for one in server.events_received() if isinstance(one, Frame)]


def test_pings_are_empty_pings() -> None:
    """Thousands in one burst, each of which a server must answer."""
    flood = floods.pings(PLAIN)
    assert flood.steps[0].send == PLAIN.request
    frames = frames_in(flood.burst)
    assert len(frames) > 5_000
    assert {(frame.opcode, bytes(frame.data)) for frame in frames} == {(Opcode.PING, b"")}


def test_fragments_are_one_message_without_an_end() -> None:
    """A text frame that is not final, then continuations that are not final."""
    flood = floods.fragments(PLAIN)
    first, *more = frames_in(flood.steps[1].send + flood.burst)
    assert (first.opcode, first.fin) == (Opcode.TEXT, False)
    kinds = {(frame.opcode, frame.fin, len(frame.data)) for frame in more}
    assert kinds == {(Opcode.CONT, False, 0)}


def test_commands_are_whole_messages() -> None:
    """Each fits into a message and is JSON; a client has connected before."""
    for make in (floods.refused_commands, floods.history_commands):
        flood = make(centrifugo([]))
        assert json.loads(bytes(frames_in(flood.steps[1].send)[0].data)) == {"connect": {}, "id": 1}
        for frame in frames_in(flood.burst):
            assert len(frame.data) <= MESSAGE_LIMIT
            for line in bytes(frame.data).split(b"\n"):
                assert json.loads(line)["id"]


def test_deep_json_is_deep_and_valid() -> None:
    """The brackets of each command's data match, 1,000 and 30,000 of them."""
    depths = Counter[int]()
    for frame in frames_in(floods.deep_json(centrifugo([])).burst):
        line = bytes(frame.data)
        depth = line.count(b"[")
        depths[depth] += 1
        assert json.loads(line.replace(b"[" * depth + b"]" * depth, b"0"))["id"]
    assert {*depths} == {1_000, 30_000}


def test_settings_are_acknowledged() -> None:
    """An HTTP/2 server reads the burst as changes of settings, and answers each."""
    flood = floods.settings()
    server = http2_server()
    count = 0
    for data in (flood.steps[0].send, flood.burst[:900]):
        events = server.receive_data(data)
        count += sum(isinstance(one, h2.events.RemoteSettingsChanged) for one in events)
    assert count == 101
    assert server.data_to_send().count(bytes((0, 0, 0, 4, 1, 0, 0, 0, 0))) == 101


def test_reset_streams_are_requests_that_are_reset() -> None:
    """Each stream is a whole GET, and is cancelled; the numbers of two bursts go on."""
    order = Order(port=0, flood=floods.reset_streams("/health/live"), attackers=1)
    server = http2_server()
    with Attack(order) as attack, socket.socket() as sock:
        connection = Connection(0, sock)
        bursts = [attack.next_burst(connection) for _ in range(2)]
    server.receive_data(order.flood.steps[0].send)
    events = [one for burst in bursts for one in server.receive_data(burst)]
    requests = [one for one in events if isinstance(one, h2.events.RequestReceived)]
    resets = [one for one in events if isinstance(one, h2.events.StreamReset)]
    assert len(requests) == len(resets) == 2_000
    assert [one.stream_id for one in requests] == list(range(1, 4_000, 2))
    assert requests[0].headers is not None
    assert dict(requests[0].headers)[b":path"] == b"/health/live"


def http2_server() -> h2.connection.H2Connection:
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    server.data_to_send()
    return server


def test_cookie_fits_into_a_head() -> None:
    """The request is one like any other, with 15 KB of quoted backslashes."""
    flood = floods.cookies(PLAIN)
    (step,) = flood.steps
    assert len(step.send) < HEAD_LIMIT
    assert step.send.startswith(PLAIN.request.removesuffix(b"\r\n\r\n"))
    assert step.send.count(b"\\") == 15_000
    assert step.send.count(b"\r\n\r\n") == 1


def test_slow_head_has_no_end() -> None:
    """Whatever number of its bytes arrives, the head goes on."""
    flood = floods.slow_heads()
    assert flood.pause
    assert b"\r\n\r\n" not in flood.steps[0].send + flood.burst * 10


class Victim:
    """A server that answers each connection with the same bytes, and may cut it."""

    def __init__(self, answer: bytes, cut_after: int = 0) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.received = list[bytes]()
        self.addresses = list[str]()
        self.accepted = threading.Event()
        self._answer, self._cut_after = answer, cut_after
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, address = self.listener.accept()
                self.addresses.append(address[0])
                self.accepted.set()
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        received = b""
        with connection, contextlib.suppress(OSError):
            connection.settimeout(LOOP_ANSWERS)
            while data := connection.recv(65_536):
                if not received:
                    connection.sendall(self._answer)
                received += data
                if self._cut_after and len(received) >= self._cut_after:
                    break
        self.received.append(received)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self._threads:
            thread.join()


def attacked(victim: Victim, flood: Flood, attackers: int, seconds: float) -> Attack:
    """Let attackers attack for so long."""
    reading, writing = os.pipe()
    timer = threading.Timer(seconds, os.close, (writing,))
    timer.start()
    order = Order(port=victim.port, flood=flood, attackers=attackers)
    with Attack(order) as attack:
        attack.run(reading)
    timer.join()
    os.close(reading)
    return attack


@contextlib.contextmanager
def victim_of(answer: bytes, cut_after: int = 0) -> Iterator[Victim]:
    with contextlib.closing(Victim(answer, cut_after)) as victim:
        yield victim


def test_flood_begins_behind_its_steps() -> None:
    """The burst is repeated without a gap, once the answer to each step has come."""
    flood = Flood(steps=(Step(b"hello ", b"welcome"), Step(b"begin ")), burst=b"0123456789")
    with victim_of(b"welcome") as victim:
        attack = attacked(victim, flood, 1, 0.2)
    (received,) = victim.received
    assert received.startswith(b"hello begin 01234567890123456789")
    assert len(received) <= attack.tally.sent


def test_attackers_have_addresses_of_their_own() -> None:
    """None of them is the address of the honest ones."""
    with victim_of(b"") as victim:
        attack = attacked(victim, Flood(steps=(), burst=b"x", connections=2), 3, 0.2)
    assert Counter(victim.addresses) == {"127.0.0.2": 2, "127.0.0.3": 2, "127.0.0.4": 2}
    assert (attack.tally.opened, attack.tally.cut) == (6, 0)


def test_attackers_that_are_cut_come_back() -> None:
    """At once, and each cut is counted."""
    with victim_of(b"", cut_after=10) as victim:
        attack = attacked(victim, Flood(steps=(), burst=b"x" * 10), 2, 0.3)
    assert attack.tally.cut > 10
    assert attack.tally.opened >= attack.tally.cut


def test_attackers_that_leave_are_not_cut() -> None:
    """A flood of handshakes ends each connection itself, when the answer has come."""
    flood = Flood(steps=(Step(b"GET", b"\r\n\r\n"),))
    with victim_of(b"HTTP/1.1 101\r\n\r\n") as victim:
        attack = attacked(victim, flood, 2, 0.3)
    assert attack.tally.opened > 10
    assert attack.tally.cut == 0
    assert {*victim.received} <= {b"GET", b""}


def test_goodbye_is_a_cut() -> None:
    """The attacker does not wait until the server hangs up, and comes back at once."""
    flood = Flood(steps=(), burst=b"x", goodbye=b"\x88")
    with victim_of(b"\x88\x00") as victim:
        attack = attacked(victim, flood, 1, 0.3)
    assert attack.tally.cut > 10


def test_bytes_trickle() -> None:
    """One byte at a time, on each connection at its pace."""
    flood = Flood(steps=(Step(b"GET "),), burst=b"a", connections=3, pause=0.05)
    with victim_of(b"") as victim:
        attacked(victim, flood, 1, 0.5)
    assert len(victim.received) == 3
    for received in victim.received:
        head, _, trickled = received.partition(b" ")
        assert head == b"GET"
        assert 1 <= len(trickled) <= 10


class Nowhere(SteadyPublisher):
    """A publisher whose events go nowhere: what arrives is what a test says."""

    def __init__(self) -> None:
        pass

    def publish(self, data: bytes, entry: Entry | None = None) -> None:
        pass


@pytest.fixture
def honest() -> Iterator[tuple[HonestDeliveries, list[socket.socket]]]:
    """Two subscribers, and the server's ends of their connections."""
    ends = list[socket.socket]()
    with Crowd(0) as crowd:
        for _ in range(2):
            server, client = socket.socketpair()
            client.setblocking(False)
            crowd.sockets[client.fileno()] = client
            crowd.poller.register(client, 1)
            ends.append(server)
        yield HonestDeliveries(crowd), ends
    for end in ends:
        end.close()


def test_ended_subscriber_loses_what_it_has_not_heard(
    honest: tuple[HonestDeliveries, list[socket.socket]],
) -> None:
    """It is counted, and so are the events that were due to it then and later."""
    deliveries, (first, second) = honest
    for _ in range(3):
        deliveries.publish(Nowhere())
    first.sendall(server_frame(event(0)))
    deliveries.pump(0)
    first.close()
    deliveries.pump(0)
    assert (deliveries.ended, deliveries.lost) == (1, 2 + 3)
    for number in range(3):
        second.sendall(server_frame(event(number)))
        deliveries.pump(0)
    assert (deliveries.lost, deliveries.outstanding) == (2, 0)
    deliveries.publish(Nowhere())
    assert deliveries.lost == 2 + 1 + 1
    second.sendall(server_frame(event(3)))
    deliveries.pump(0)
    assert (deliveries.lost, deliveries.outstanding) == (3, 0)


@pytest.mark.parametrize(
    ("answer", "good"), [(b"HTTP/1.1 200 OK\r\n\r\n", True), (b"HTTP/1.1 503 X\r\n\r\n", False)]
)
def test_health_check_that_fails_counts_as_ten_seconds(
    honest: tuple[HonestDeliveries, list[socket.socket]], answer: bytes, good: bool
) -> None:
    """So does one without an answer."""
    deliveries, _ = honest
    with victim_of(answer) as victim:
        checks = HealthChecks(deliveries, victim.port, "/health", secure=False)
        checks.begin()
        deliveries.listen(LOOP_ANSWERS / 10)
        assert not checks.outstanding
        (latency,) = checks.latencies_ns
        assert (latency < 10e9) is good
    with victim_of(b"") as silent:
        checks = HealthChecks(deliveries, silent.port, "/health", secure=False)
        checks.begin()
        deliveries.listen(0.1)
        checks.finish()
        assert checks.latencies_ns[0] >= 10e9


def test_publisher_does_not_wait_for_answers() -> None:
    """Events go out when they are due, one behind the other."""
    entry = Entry(
        greeting=Greeting(request=b""), encode=lambda data, _: b"".join(data), answer=b"ok"
    )
    with (
        victim_of(b"") as victim,
        contextlib.closing(SteadyPublisher(victim.port, entry)) as publisher,
    ):
        for number in range(3):
            publisher.publish(b"%d" % number)
        assert victim.accepted.wait(LOOP_ANSWERS)  # else its end would drop the connection
    assert victim.received == [b"012"]


def test_every_kind_has_a_workload_of_its_own_command() -> None:
    """A full run leaves them out, and each names only flooded servers, with a health check."""
    for kind in KINDS:
        assert WORKLOADS[f"hostile-{kind.name}"].apart
        assert {*kind.peers} <= {*FLOODED}
    assert all(PEERS[name].health for name in FLOODED)


@starts_processes
@pytest.mark.slow
@pytest.mark.parametrize("name", ["pings", "resets", "handshakes", "slow-heads"])
def test_a_hostile_turn(name: str) -> None:
    """A second of each: the honest ones are served, and the attackers get something in."""
    kind = KIND[name]
    turn = hostile(PEERS[kind.peers[0]], kind, seconds=1, rest=0.1, subscribers=20)
    assert turn.values["sent_kib"] > 0
    assert turn.values["flood_p99_ms"] > 0
    assert {*turn.values} <= {*METRICS, *WORKLOADS[f"hostile-{name}"].metrics}
    assert turn.values["lost"] == turn.values["ended"] == 0
