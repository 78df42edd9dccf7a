"""The client of a cluster whose servers contradict each other, or are not there: faked servers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count, pairwise

import hiredis
import pytest
import trio
import trio.testing

from repeater.valkey import cluster as cluster_module
from repeater.valkey.cluster import Cluster
from repeater.valkey.dial import Greeting
from repeater.valkey.pipe import Lost, Refused, packed
from repeater.valkey.slots import PARTITIONS, slot_of, tags
from repeater.valkey.url import Address
from tests.deadlines import LOOP_ANSWERS
from tests.valkey_connections import Heard, States
from tests.valkeys import valkey

PARTITION = 7
SLOT = slot_of(tags()[PARTITION])
KEY = f"{{{tags()[PARTITION]}}}key"


class FakeServer:
    """Answers as a server of a cluster does, and as the test says."""

    def __init__(self, layout: Callable[[], bytes]) -> None:
        self.layout = layout
        self.port = 0
        self.tag = f"{{{tags()[PARTITION]}}}"
        self.moved_to: int | None = None
        """Where it says that `PARTITION` is; None: here."""
        self.asking: int | None = None
        """Where it says that the keys of `PARTITION` are already."""
        self.asked = 0
        """How often it has said so."""
        self.is_down = False
        """Whether it serves no keys."""
        self.subscribed = 0
        """How often somebody wanted to subscribe to that partition."""

    async def serve(self, stream: trio.SocketStream) -> None:
        reader = hiredis.Reader()
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():  # nobody tells
                reader.feed(bytes(data))
                while (command := reader.gets()) is not False:  # nobody tells
                    await stream.send_all(self.answer(command))

    def answer(self, command: list[bytes]) -> bytes:
        name = command[0]
        if name == b"HELLO":
            return b"%0\r\n"
        if name == b"PING":
            return b"+PONG\r\n"
        if name == b"ROLE":
            return b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"
        if name == b"CLUSTER":
            return self.layout()
        text = self.tag.encode()
        if self.moved_to is not None and text in command[1]:
            self.subscribed += name == b"SSUBSCRIBE"
            return b"-MOVED %d 127.0.0.1:%d\r\n" % (SLOT, self.moved_to)
        if self.asking is not None and name == b"GET":
            self.asked += 1
            return b"-ASK %d 127.0.0.1:%d\r\n" % (SLOT, self.asking)
        if name == b"SSUBSCRIBE":
            return b"".join(_push(b"ssubscribe", one) for one in command[1:])
        if self.is_down:
            return b"-CLUSTERDOWN The cluster is down\r\n"
        if name == b"SPUBLISH":
            return b":1\r\n"
        return b"$4\r\nhere\r\n" if name == b"GET" else b":0\r\n"


def _push(kind: bytes, channel: bytes) -> bytes:
    return b">3\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n:1\r\n" % (len(kind), kind, len(channel), channel)


def slots(*ports: int) -> bytes:
    """The layout: equal shares of the slots."""
    rows = []
    for number, port in enumerate(ports):
        first, last = 16_384 * number // len(ports), 16_384 * (number + 1) // len(ports) - 1
        rows.append(b"*3\r\n:%d\r\n:%d\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % (first, last, port))
    return b"*%d\r\n" % len(rows) + b"".join(rows)


@asynccontextmanager
async def fakes(number: int) -> AsyncIterator[list[FakeServer]]:
    """Servers of which only the first has partitions, as all of them say."""
    found: list[FakeServer] = []
    async with trio.open_nursery() as nursery:
        for _ in range(number):
            server = FakeServer(lambda: slots(found[0].port))
            start = partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1")
            (listener,) = await nursery.start(start)
            server.port = listener.socket.getsockname()[1]
            found.append(server)
        yield found
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client_of(port: int, states: States, timeout: float = 0.2) -> AsyncIterator[Cluster]:
    client = Cluster([Address("127.0.0.1", port)], Greeting(), prefix="test", timeout=timeout)
    client.add(states)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        yield client
        nursery.cancel_scope.cancel()


async def test_a_server_counts_more_than_the_layout_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A partition stays where its server says, though the layout is older for a while."""
    monkeypatch.setattr(cluster_module, "_LAYOUT_WANTED", 0.05)
    states, answers = States(), Heard()
    async with fakes(2) as (first, second), client_of(first.port, states) as client:
        await states.wait()
        states.news.clear()
        first.moved_to = second.port
        client.ask(PARTITION, packed("GET", KEY), answers)
        await answers.wait(b"here")
        await states.wait_news(("down", PARTITION), ("up", PARTITION))
        await trio.sleep(0.3)
        assert len(states.news) == 2
        assert client.statistics().primaries == 2
        assert client.outage() == ""


async def test_servers_that_name_each_other_are_asked_in_turns() -> None:
    """They are asked every 50 ms until they agree; what was asked meanwhile is answered then."""
    states, answers = States(), Heard()
    async with fakes(2) as (first, second), client_of(first.port, states, 2.0) as client:
        await states.wait()
        first.moved_to, second.moved_to = second.port, first.port
        client.ask(PARTITION, packed("GET", KEY), answers)
        await trio.sleep(0.8)
        assert answers.all == []
        assert PARTITION not in states.up_now
        assert 2 < first.subscribed + second.subscribed <= 50
        second.moved_to = None
        await answers.wait(b"here")
        await states.wait()


async def test_a_move_to_a_server_that_is_not_there_is_an_outage() -> None:
    """After twice the timeout what waits is told so, and the layout counts again."""
    states, answers = States(), Heard()
    async with fakes(1) as (first,), client_of(first.port, states) as client:
        await states.wait()
        first.moved_to = 1  # Nothing listens there.
        client.ask(PARTITION, packed("GET", KEY), answers)
        await answers.wait_number(1)
        assert isinstance(answers.all[0], Lost)
        assert client.outage().startswith("1 of 128 partitions: ")
        first.moved_to = None
        await states.wait()
        assert client.outage() == ""


async def test_whoever_is_told_of_the_end_may_ask_elsewhere() -> None:
    """The partition that is asked then was on its way to another server."""
    states, answers = States(), Heard()
    async with fakes(1) as (first,), client_of(first.port, states, 5.0) as client:
        await states.wait()

        def ask_elsewhere(answer: object) -> None:
            answers(answer)
            with pytest.raises(Lost):
                client.ask(PARTITION + 1, packed("GET", KEY), answers)

        for number in (PARTITION, PARTITION + 1):
            first.moved_to, first.tag = 1, client.tag(number)  # Nothing listens there.
            client.subscribe(number, {f"{first.tag}x".encode(): Heard()}, Heard())
            await states.wait(up=PARTITIONS - 1 if number == PARTITION else PARTITIONS - 2)
        client.ask(PARTITION, packed("GET", KEY), ask_elsewhere)
        assert client.why(PARTITION) == client.why(PARTITION + 1) == ""
    assert [type(one) for one in answers.all] == [Lost]


async def test_a_server_without_partitions_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connections are closed some time after its last use."""
    monkeypatch.setattr(cluster_module, "_LAYOUT_WANTED", 0.05)
    monkeypatch.setattr(cluster_module, "_LAYOUT", 0.1)
    monkeypatch.setattr(cluster_module, "_TRUSTED", 0.1)
    monkeypatch.setattr(cluster_module, "_UNUSED", 0.2)
    states = States()
    async with fakes(2) as (first, second), client_of(first.port, states) as client:
        await states.wait()
        first.layout = second.layout = lambda: slots(second.port)
        with trio.fail_after(LOOP_ANSWERS):
            while {one.port for one in client._members} != {second.port}:  # noqa: ASYNC110  # nobody tells
                await trio.sleep(0.02)
        await states.wait()
        assert client.statistics().primaries == 1


@pytest.mark.parametrize("knows", ["nothing", "what was"])
async def test_a_server_that_was_taken_out_is_not_believed(
    knows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is connected for some time more, and knows no layout, or that of the past."""
    monkeypatch.setattr(cluster_module, "_LAYOUT_WANTED", 0.02)
    monkeypatch.setattr(cluster_module, "_LAYOUT", 0.03)
    states = States()
    async with fakes(2) as (first, second):
        first.layout = second.layout = lambda: slots(first.port, second.port)
        async with client_of(first.port, states) as client:
            await states.wait()
            assert client.statistics().primaries == 2
            first.layout = lambda: slots(first.port)
            if knows == "nothing":
                second.layout = lambda: b"*0\r\n"
            with trio.fail_after(LOOP_ANSWERS):
                while client.statistics().primaries == 2:  # noqa: ASYNC110  # nobody tells
                    await trio.sleep(0.02)
            await states.wait()
            states.news.clear()
            await trio.sleep(0.5)
            assert states.news == []
            assert len(client._members) == 2


async def test_servers_without_number_are_not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout that names other servers each time, and a MOVED to one more."""
    monkeypatch.setattr(cluster_module, "_LAYOUT_WANTED", 0.02)
    monkeypatch.setattr(cluster_module, "_MEMBERS", 3)
    states, told = States(), Heard()
    async with fakes(1) as (first,), client_of(first.port, states) as client:
        await states.wait()
        ports = count(1)
        first.layout = lambda: slots(first.port, *(next(ports) for _ in range(127)))
        await states.wait(up=1)
        await trio.sleep(0.2)
        assert len(client._members) == 3
        assert states.up_now == {0}
        channel = f"{client.tag(0)}x".encode()
        first.moved_to, first.tag = 9, client.tag(0)
        client.subscribe(0, {channel: Heard()}, told)
        await told.wait_number(1)
        assert isinstance(told.all[0], Lost)


async def test_a_layout_that_nobody_tells_is_asked_for_seldom(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Of many nodes in an outage each asks every 2 s at most, and not all at once."""
    asked: list[float] = []

    async def read(*_arguments: object) -> None:
        asked.append(trio.current_time())
        raise Lost("nobody is there")

    client = Cluster([Address("host", 1)], Greeting(), prefix="test", timeout=2)
    client._layout.read = read  # type: ignore[method-assign,assignment]
    with trio.move_on_after(60):
        await client.run()
    assert 20 < len(asked) < 70
    pauses = {round(later - one, 6) for one, later in pairwise(asked[5:])}
    assert len(pauses) > 10
    assert max(pauses) <= 2


async def test_keys_at_a_server_that_is_not_there_are_asked_for_at_both_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A command is not kept for ever, and if the move is given up, it is answered."""
    monkeypatch.setattr("repeater.valkey.partition._AGAIN", 0.5)
    states, answers = States(), Heard()
    async with fakes(1) as (first,), client_of(first.port, states) as client:
        await states.wait()
        first.asking = 1  # Nothing listens there.
        client.ask(PARTITION, packed("GET", KEY), answers)
        client.ask(PARTITION, packed("EXISTS", KEY), answers)
        await answers.wait_number(2)
        assert isinstance(answers.all[1], Refused)
        assert answers.all[1].code == "ASK"
        assert 2 <= first.asked <= 15
        client.ask(PARTITION, packed("GET", KEY), answers)
        await trio.sleep(0.1)
        first.asking = None
        await answers.wait_number(3)
        assert answers.all[2] == b"here"


async def test_slots_of_nobody_are_an_outage() -> None:
    """Partitions without a primary are not there; the others are."""
    states = States()
    async with fakes(1) as (first,), client_of(first.port, states) as client:
        first.layout = lambda: slots(first.port, first.port).replace(b"*2\r\n", b"*1\r\n", 1)
        await states.wait(up=64)
        assert client.outage() == (
            "64 of 128 partitions: no server of the cluster has this partition"
        )
        first.layout = lambda: slots(first.port)
        await states.wait()


async def test_a_server_that_is_not_of_a_cluster_is_named_so() -> None:
    """The outage says what the server said."""
    with valkey() as server:
        async with client_of(server.port, States()) as client:
            with trio.fail_after(LOOP_ANSWERS):
                while "cluster support disabled" not in client.outage():  # noqa: ASYNC110  # nobody tells
                    await trio.sleep(0.02)


async def test_a_server_of_a_cluster_that_hands_on_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The faked server takes messages, and they do not come back by its bus."""
    monkeypatch.setattr("repeater.valkey.primary._PING", 0.05)
    states = States()
    async with fakes(1) as (first,), client_of(first.port, states) as client:
        await states.wait()
        await states.wait(up=0)
        assert client.outage() == "bus: its own messages do not come back"
        assert client.statistics().losses == {"bus": 1}


async def test_a_server_that_serves_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers and subscribes, and says that the cluster is down when it is asked for a key."""
    monkeypatch.setattr("repeater.valkey.primary._PING", 0.05)
    states = States()
    async with fakes(1) as (first,), client_of(first.port, states) as client:
        first.is_down = True
        await trio.sleep(0.3)
        assert states.news == []
        assert client.outage() == "commands: CLUSTERDOWN The cluster is down"
        first.is_down = False
        await states.wait()
        first.is_down = True
        await states.wait(up=0)
