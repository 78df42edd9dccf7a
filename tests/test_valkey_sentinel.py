"""The client finds a primary by Sentinels, and its successor after a failover."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import trio

from repeater.valkey.opening import open_servers
from repeater.valkey.pipe import Lost
from repeater.valkey.sentinel import _address_in, _epoch_in, _Poll
from repeater.valkey.servers import answer_from
from repeater.valkey.url import Address, parse_url
from tests.processes import starts_processes
from tests.valkey_connections import Heard, Log, connected
from tests.valkey_sentinels import NAME, Watched, watched
from tests.valkeys import OLDEST, VALKEY, Program, valkey

pytestmark = starts_processes


@pytest.fixture
def servers() -> Iterator[Watched]:
    with watched() as running:
        yield running


@pytest.mark.parametrize(
    ("program", "number"), [(VALKEY, signal.SIGKILL), (OLDEST, signal.SIGSTOP)], ids=str
)
async def test_a_promoted_replica_is_found(program: Program, number: signal.Signals) -> None:
    """After the primary's death or pause its replica is used, and subscriptions are there again."""
    log, told, heard = Log(), Heard(), Heard()
    with watched(program) as servers:
        async with connected(servers.url, log, timeout=0.5) as client:
            client.subscribe(0, {b"one": heard}, told)
            await told.wait(None)
            assert await answer_from(client, 0, "SET", "key", "value") == b"OK"
            servers.wait_in_step()
            servers.servers[0].process.send_signal(number)
            await log.wait("up", "down", "up")
            assert await answer_from(client, 0, "GET", "key") == b"value"
            assert await answer_from(client, 0, "CONFIG", "GET", "port") == {
                b"port": b"%d" % servers.servers[1].port
            }
            servers.servers[1].call("PUBLISH", "one", "1")
            await heard.wait(b"1")


async def test_one_sentinel_is_enough_but_slower(servers: Watched) -> None:
    """Without a majority the newest answer counts."""
    for sentinel in servers.sentinels[1:]:
        sentinel.kill()
    async with connected(servers.url) as client:
        assert await answer_from(client, 0, "ECHO", "here") == b"here"


def test_most_votes_count_else_the_newest() -> None:
    """A Sentinel that was cut off names the primary of an older epoch."""
    old, new = Address("old", 1), Address("new", 1)
    poll = _Poll(3)
    poll.take(new, 7)
    poll.take(old, 6)
    assert not poll.decided.is_set()
    poll.fail("refused")
    assert poll.decided.is_set()
    assert (poll.most, poll.newest) == (None, new)
    poll = _Poll(3)
    poll.take(old, 6)
    poll.take(new, 7)
    poll.take(old, 6)
    assert poll.decided.is_set()
    assert poll.most == old


@pytest.mark.parametrize(
    "answer",
    [[b"name", b"main", b"config-epoch", b"3"], {b"name": b"main", b"config-epoch": b"3"}],
)
def test_an_epoch_is_read_from_a_list_or_a_map(answer: object) -> None:
    """Redis 6 answers the one, others the other; what is neither is the oldest."""
    assert _epoch_in(answer) == 3
    assert _epoch_in([b"config-epoch", b"x"]) == _epoch_in(None) == 0
    assert _epoch_in([[], 1]) == _epoch_in({b"config-epoch": []}) == 0
    assert _epoch_in({b"config-epoch": float("inf")}) == 0


@pytest.mark.parametrize(
    "answer", [None, 5, [], [b"host"], [1, 2], [b"host", b"x"], [b"\xff", b"1"]]
)
def test_an_address_that_cannot_be_read_is_none(answer: object) -> None:
    """What is at the address of a Sentinel may be anything."""
    with pytest.raises(Lost, match="does not know"):
        _address_in(answer)


async def test_no_sentinel_is_an_outage() -> None:
    """Where no Sentinel answers, or none knows the name, the outage says so."""
    log = Log()
    with valkey() as server:
        client = open_servers([parse_url(f"valkey+sentinel://127.0.0.1:{server.port}/other")])
        client.add(log)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await trio.sleep(0.3)
            assert "no Sentinel knows the primary" in client.outage()
            nursery.cancel_scope.cancel()
    assert log.news == []


async def test_a_primary_that_most_sentinels_have_left_is_left(
    servers: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A primary that answers here, but was replaced where it is cut off from the others."""
    monkeypatch.setattr("repeater.valkey.primary._LOCATE", 0.2)
    log = Log()
    async with connected(servers.url, log) as client:
        for sentinel in servers.sentinels:
            sentinel.call("SENTINEL", "REMOVE", NAME)
            sentinel.call("SENTINEL", "MONITOR", NAME, "127.0.0.1", servers.servers[1].port, 2)
        await log.wait("up", "down")
        servers.servers[1].call("REPLICAOF", "NO", "ONE")
        await log.wait("up", "down", "up")
        assert await answer_from(client, 0, "CONFIG", "GET", "port") == {
            b"port": b"%d" % servers.servers[1].port
        }


async def test_sentinels_have_credentials_of_their_own() -> None:
    """The primary and its Sentinels are each given what is theirs."""
    with watched() as servers:
        for server, password in (
            (servers.servers[0], "theirs"),
            *((sentinel, "other") for sentinel in servers.sentinels),
        ):
            # The connections that the servers have to each other go on.
            server.call("ACL", "SETUSER", "default", "resetpass", f">{password}")
        url = servers.url.replace("//", "//:theirs@")
        async with connected(f"{url}?sentinel_password=other") as client:
            assert await answer_from(client, 0, "ECHO", "here") == b"here"
