"""The client of Valkey and Redis, against real servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import trio
import trio.testing

from repeater.valkey.cluster import Cluster
from repeater.valkey.dial import Greeting
from repeater.valkey.member import Member
from repeater.valkey.opening import open_servers
from repeater.valkey.pipe import Lost, Refused, packed
from repeater.valkey.servers import answer_from
from repeater.valkey.single import SinglePrimary
from repeater.valkey.url import Address, parse_url
from tests.valkey_connections import Heard, Log, connected
from tests.valkeys import PROGRAMS, VALKEY, Program, ValkeyServer, valkey


@pytest.fixture(params=PROGRAMS, ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    program: Program = request.param
    with valkey(program) as running:
        yield running


@pytest.mark.parametrize("attribute", ["url", "unix_url"])
async def test_commands_are_answered_in_their_order(server: ValkeyServer, attribute: str) -> None:
    """Answers come in the order of commands, over TCP and over a Unix socket."""
    heard = Heard()
    async with connected(getattr(server, attribute)) as servers:
        for number in range(1_000):
            servers.ask(0, packed("ECHO", number), heard)
        assert await answer_from(servers, 0, "ECHO", "end") == b"end"
    assert heard.all == [b"%d" % number for number in range(1_000)]


async def test_an_error_is_an_answer(server: ValkeyServer) -> None:
    """A command that the server refuses tells its code, and the next one is answered."""
    async with connected(server.url) as servers:
        with pytest.raises(Refused, match="wrong number") as refused:
            await answer_from(servers, 0, "GET")
        assert refused.value.code == "ERR"
        assert await answer_from(servers, 0, "ECHO", "next") == b"next"


async def test_messages_come_to_their_takers(server: ValkeyServer) -> None:
    """A message goes to the taker of its channel, after the subscription was confirmed."""
    told, first, second = Heard(), Heard(), Heard()
    async with connected(server.url) as servers:
        servers.subscribe(0, {b"one": first, b"two": second}, told)
        await told.wait(None)
        server.call("PUBLISH", "one", "1")
        server.call("PUBLISH", "two", "2")
        await second.wait(b"2")
        assert first.all == [b"1"]
        servers.unsubscribe(0, [b"one"])
        server.call("PUBLISH", "one", "lost")
        server.call("PUBLISH", "two", "3")
        await second.wait(b"2", b"3")
    assert first.all == [b"1"]


async def test_a_refused_subscription_is_told_and_not_kept(server: ValkeyServer) -> None:
    """What the server's rights do not allow is told as refused; other subscriptions go on."""
    rights = ("+@all", "~*", "resetchannels", "&a*", "&repeater:*")
    server.call("ACL", "SETUSER", "some", "on", ">secret", *rights)
    told, heard = Heard(), Heard()
    url = server.url.replace("//", "//some:secret@")
    async with connected(url) as servers:
        servers.subscribe(0, {b"a1": heard}, told)
        servers.subscribe(0, {b"b1": heard}, told)
        servers.subscribe(0, {b"a2": heard}, told)
        await told.wait_number(3)
        first, refused, third = told.all
        assert first is third is None
        assert isinstance(refused, Refused)
        assert refused.code == "NOPERM"
        server.call("PUBLISH", "a2", "x")
        await heard.wait(b"x")


async def test_a_server_that_dies_and_comes_back_is_found_again(server: ValkeyServer) -> None:
    """What was asked fails; what is asked fails at once; all subscriptions come back."""
    log, told, heard = Log(), Heard(), Heard()
    async with connected(server.url, log) as servers:
        servers.subscribe(0, {b"one": heard}, told)
        await told.wait(None)
        answers = Heard()
        server.pause()
        servers.ask(0, packed("ECHO", "lost"), answers)
        await trio.testing.wait_all_tasks_blocked()
        server.kill()
        await log.wait("up", "down")
        assert isinstance(answers.all[0], Lost)
        assert servers.outage()
        with pytest.raises(Lost):
            servers.ask(0, packed("ECHO", "not sent"), answers)
        server.start()
        await log.wait("up", "down", "up")
        assert servers.outage() == ""
        server.call("PUBLISH", "one", "1")
        await heard.wait(b"1")


async def test_a_server_that_is_silent_is_left(server: ValkeyServer) -> None:
    """A paused server that was asked something is down after the timeout."""
    log, answers = Log(), Heard()
    async with connected(server.url, log, timeout=0.2) as servers:
        server.pause()
        servers.ask(0, packed("ECHO", "lost"), answers)
        await log.wait("up", "down")
        assert isinstance(answers.all[0], Lost)
        assert "no answer within 0.2 s" in servers.outage()
        server.resume()
        await log.wait("up", "down", "up")


async def test_a_replica_is_not_a_primary(server: ValkeyServer) -> None:
    """A server that was demoted is left at its first refusal of a write."""
    log = Log()
    async with connected(server.url, log) as servers:
        server.call("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(Refused, match="READONLY"):
            await answer_from(servers, 0, "SET", "a", "b")
        await log.wait("up", "down")
        await trio.sleep(0.5)
        assert "not a primary" in servers.outage()
        server.call("REPLICAOF", "NO", "ONE")
        await log.wait("up", "down", "up")


async def test_the_bus_is_not_read_without_room(server: ValkeyServer) -> None:
    """What comes while a listener has no room is given out later, in order."""
    log, told, heard = Log(), Heard(), Heard()
    async with connected(server.url, log) as servers:
        servers.subscribe(0, {b"one": heard}, told)
        await told.wait(None)
        log.room = trio.Event()
        server.call("PUBLISH", "one", "first")
        await heard.wait(b"first")
        server.call("PUBLISH", "one", "second")
        await trio.sleep(0.05)
        assert heard.all == [b"first"]
        log.room.set()
        await heard.wait(b"first", b"second")


async def test_a_bus_that_hands_on_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers everything is left if our own messages do not come by its bus."""
    monkeypatch.setattr("repeater.valkey.primary._PING", 0.05)
    log = Log()
    with valkey(VALKEY) as server:
        async with connected(server.url, log) as servers:
            await trio.sleep(0.5)
            assert log.news == ["up"]
            # The subscription ends, and nobody says so to the client's code.
            monkeypatch.setattr(type(servers), "push", lambda _self, _message: None)
            await log.wait("up", "down", "up", "down")
            assert servers.outage() == "bus: its own messages do not come back"
            assert servers.statistics().losses["bus"] == 2


async def test_an_answer_by_the_bus_comes_in_its_turn(server: ValkeyServer) -> None:
    """It is told behind the messages before it, and before those behind it."""
    heard = Heard()
    async with connected(server.url) as servers:
        servers.subscribe(0, {b"one": heard}, heard)
        servers.ask_bus(0, packed("PUBLISH", "one", "1"), heard)
        servers.ask_bus(0, packed("ECHO", "answer"), heard)
        servers.ask_bus(0, packed("PUBLISH", "one", "2"), heard)
        await heard.wait_number(6)
    assert heard.all.index(None) == 0
    assert heard.all.index(b"1") < heard.all.index(b"answer") < heard.all.index(b"2")


async def test_a_loss_is_told_to_callbacks_before_the_listener(server: ValkeyServer) -> None:
    """So whoever is told that the engine is down has no question under way any more."""
    news: list[str] = []

    class Noting(Log):
        def down(self, partitions: Sequence[int]) -> None:
            super().down(partitions)
            news.append("down")

    log = Noting()
    async with connected(server.url, log) as servers:
        server.pause()
        servers.ask(0, packed("PING"), lambda answer: news.append(type(answer).__name__))
        server.kill()
        await log.wait("up", "down")
    assert news[:2] == ["Lost", "down"]


async def test_whoever_is_told_of_a_loss_may_unsubscribe(server: ValkeyServer) -> None:
    """A callback does it when a silent server is left, before the listener is told."""
    log, heard = Log(), Heard()
    async with connected(server.url, log, timeout=0.2) as servers:
        servers.subscribe(0, {b"one": heard}, heard)
        await heard.wait(None)
        server.pause()
        servers.ask(0, packed("PING"), lambda _answer: servers.unsubscribe(0, [b"one"]))
        await log.wait("up", "down")


async def test_a_server_that_was_left_is_not_there_again() -> None:
    """Subscriptions that are confirmed in the same pass are too late: the reason stays."""
    servers = open_servers([parse_url("valkey://host")])
    assert isinstance(servers, SinglePrimary)
    primary = servers._primary
    primary._left.set()
    primary.why = "bus: it has gone"
    servers._confirmed(None)
    assert servers.outage() == "bus: it has gone"


FORMS: tuple[list[object], ...] = (
    [],
    [None],
    [b"c"],
    [[], b"x"],
    [b"c", 7],
    [7, b"x"],
    [b"{5n3}c", b"x", b"y"],
)


@pytest.mark.parametrize("url", ["valkey://host", "valkey+cluster://host"])
async def test_a_push_of_another_form_is_nothing(url: str) -> None:
    """Whatever a server pushes, the process goes on."""
    servers = open_servers([parse_url(url)])
    owner: SinglePrimary | Member
    if isinstance(servers, Cluster):
        owner = Member(Address("host", 1), Greeting(), servers, timeout=1)
    else:
        assert isinstance(servers, SinglePrimary)
        owner = servers
    for kind in (b"message", b"smessage", b"sunsubscribe", b"subscribe", b"", None, 7):
        for rest in FORMS:
            owner.push([kind, *rest])
    owner.push([])


async def test_commands_keep_their_order_however_they_come(server: ValkeyServer) -> None:
    """One at a time they are written at once, together in the next pass; large ones in parts."""
    async with connected(server.unix_url) as servers:
        asked, answered = list[bytes](), list[object]()
        for size, together in ((3, 1), (3, 1), (3, 5), (3, 1), (3_000_000, 3), (3, 300), (3, 1)):
            for number in range(together):
                asked.append(b"%d/%d/" % (len(asked), number) + size * b"x")
                servers.ask(0, packed("ECHO", asked[-1]), answered.append)
            await answer_from(servers, 0, "PING")
            assert answered == asked
