"""docs/engines.md: the users that it prints have the rights that Repeater needs, and no others."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest
import trio

from repeater.access.grants import Denial
from repeater.brokers.receipts import settled
from repeater.brokers.valkey.broker import ValkeyBroker
from repeater.clients.limits import Place
from repeater.cluster.opening import open_cluster
from repeater.cluster.presence import open_cluster_presence
from repeater.node import open_node
from repeater.options import LimitOptions, NodeOptions
from repeater.publication import Announcement, ClientInfo, Publication
from repeater.random_id import random_id
from repeater.testing import check_control, check_presence_store
from repeater.testing.broker_bench import LASTING, data_of, running
from repeater.valkey.opening import open_servers
from repeater.valkey.url import parse_url
from tests.deadlines import LOOP_ANSWERS
from tests.valkey_clusters import cluster
from tests.valkey_sentinels import watched
from tests.valkeys import REDIS, Program, ValkeyServer, calls, each_program, valkey

if TYPE_CHECKING:
    from repeater.brokers.contract import Broker, PresenceStore
    from repeater.brokers.control import Supervision
    from repeater.cluster.opening import Cluster
    from repeater.testing.control_bench import Controls
    from repeater.valkey.servers import Servers

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "service" / "repeater"
ROOMS = ("valkey", "brokers/valkey", "cluster")
SENTINEL = {"sentinel|get-master-addr-by-name", "sentinel|master"}
CLUSTER = {"cluster|slots", "asking", "exists", "spublish", "ssubscribe", "sunsubscribe"}


def printed(language: str) -> list[str]:
    """The lines of the page's blocks in this language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [line for block in found for line in block.splitlines() if line]


ONE_SERVER, ON_SENTINELS = printed("acl")
IN_A_CLUSTER = " ".join((ONE_SERVER, *printed("acl-cluster")))


def allowed(user: str) -> set[str]:
    """The commands of a user."""
    return {word[1:] for word in user.split() if word.startswith("+")}


def used_by_scripts() -> Iterator[str]:
    """The commands that scripts call."""
    for room in ROOMS:
        for file in (PACKAGE / room).rglob("*.lua"):
            yield from re.findall(r"(?:call|try|pcall)\('([A-Z]+)'", file.read_text())


def sent() -> Iterator[str]:
    """The commands that are written out in the code, with their subcommands."""
    # A command is the first text of a call, with a second word for those that have subcommands.
    written = (
        r'(?:packed|answer_to|answer_from|Subscriptions)\((?:\w+, )?b?"([A-Z]+)"(?:, "([A-Z-]+)")?'
    )
    for room in ROOMS:
        for file in (PACKAGE / room).rglob("*.py"):
            for name, second in re.findall(written, file.read_text()):
                yield f"{name}|{second}" if name in ("SENTINEL", "CLUSTER") else name


def test_the_users_have_what_the_code_sends_and_no_more() -> None:
    """A command that is new in the code is new in the page; one that has gone is gone there too."""
    # HELLO and AUTH need no right. SELECT is for a database number, and INFO for a strict failover:
    # the page tells.
    more = {"hello", "auth", "select", "info"}
    by_code = {one.lower() for one in (*sent(), *used_by_scripts())} - more
    by_code |= {"publish", "subscribe", "unsubscribe", "sunsubscribe"}  # by names of variables
    assert allowed(IN_A_CLUSTER) == by_code - SENTINEL
    assert allowed(ONE_SERVER) == by_code - SENTINEL - CLUSTER
    assert allowed(ON_SENTINELS) == SENTINEL | {"ping"}


def test_the_commands_are_those_of_the_oldest_servers() -> None:
    """All are in Redis 6.2, and those for a cluster in 7.0, as Redis itself says."""
    with valkey(REDIS) as server:
        documented = calls(server.path, ("HELLO", 3), ("COMMAND", "DOCS"))[1]
    since: dict[bytes, bytes] = {}
    for name, one in cast("dict[bytes, dict[bytes, Any]]", documented).items():
        since[name] = one[b"since"]
        since |= {child: its[b"since"] for child, its in one.get(b"subcommands", {}).items()}

    def newest(names: set[str]) -> bytes:
        return max((since[name.encode()] for name in names), key=lambda text: text.split(b"."))

    assert newest(allowed(ONE_SERVER)) <= b"6.2.0"
    assert newest(allowed(IN_A_CLUSTER)) <= b"7.0.0"
    # Sentinels are no servers: their commands are of 2.8 (docs of SENTINEL).
    assert allowed(ON_SENTINELS) == SENTINEL | {"ping"}


def test_the_file_of_the_example_has_these_rights() -> None:
    """The user of deploy/cluster is the page's."""
    lines = (ROOT / "deploy" / "cluster" / "users.acl").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("user repeater ")] == [ONE_SERVER]


def admit(user: str, *servers: ValkeyServer) -> None:
    """Make the user on servers."""
    for server in servers:
        server.call("ACL", *user.replace("user ", "SETUSER ", 1).split())


def servers_of(url: str) -> Servers:
    """Where the page's user signs in."""
    (password,) = re.findall(r" >(\S+)", ONE_SERVER)
    return open_servers([parse_url(url.replace("//", f"//repeater:{password}@"))])


def refused(*servers: ValkeyServer) -> list[object]:
    """What servers have refused for want of rights."""
    return [one for server in servers for one in cast("list[object]", server.call("ACL", "LOG"))]


@pytest.mark.slow
@each_program
async def test_a_node_works_with_the_least_rights(program: Program) -> None:
    """Everything that a node does, and the server has refused nothing."""
    with valkey(program) as server:
        admit(ONE_SERVER, server)
        await use_broker(server.url)
        await use_presence(server.url)
        await use_control(server.url)
        assert refused(server) == []


@pytest.mark.slow
async def test_the_rights_in_a_cluster() -> None:
    """The same with the commands of a cluster; no server has refused anything."""
    with cluster() as servers:
        admit(IN_A_CLUSTER, *servers.all)
        await use_broker(servers.url)
        assert refused(*servers.all) == []


@pytest.mark.slow
async def test_the_rights_on_sentinels() -> None:
    """Sentinels tell the page's user where the primary is."""
    with watched() as watch:
        everybody = (*watch.servers, *watch.sentinels)
        admit(ONE_SERVER, *watch.servers)
        admit(ON_SENTINELS, *watch.sentinels)
        (password,) = re.findall(r" >(\S+)", ON_SENTINELS)
        await use_broker(f"{watch.url}?sentinel_username=repeater&sentinel_password={password}")
        assert refused(*everybody) == []


async def use_broker(url: str) -> None:
    """Publish in every way, with several scripts, and read."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        yield ValkeyBroker(servers_of(url))

    with trio.fail_after(LOOP_ANSWERS):
        async with running(opened, room=1_000, options=LASTING) as bench:
            await bench.publish(b"1", key="k")
            await bench.send(Publication(bench.channel, b"2", version=7, version_epoch="e"))
            await bench.publish(b"3", skip_history=True)
            await bench.announce(Announcement(bench.channel, ClientInfo("u", "c"), joined=True))
            assert data_of((await bench.history())[0]) == [b"1", b"2"]
            assert data_of((await bench.history(reverse=True))[0]) == [b"2", b"1"]
            await settled(bench.broker.remove_history(bench.channel))
            bench.options = msgspec.structs.replace(LASTING, history_size=0)
            await bench.publish(b"4")
            for number in range(32):  # in many partitions, where there are some
                await bench.publish(channel=f"{bench.channel}:{number}")


async def use_presence(url: str) -> None:
    """Keep the contract of a presence store."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[PresenceStore]:
        async with open_cluster_presence(servers_of(url), random_id()) as store:
            yield store

    await check_presence_store(opened, shared=True)


async def use_control(url: str) -> None:
    """Keep the contract of a control, deny, and take and give back places."""
    numbers = count()

    @asynccontextmanager
    async def clusters(many: int) -> AsyncIterator[list[Cluster]]:
        prefix = f"repeater:{next(numbers)}"
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(open_cluster(servers_of(url), prefix=prefix))
                for _ in range(many)
            ]

    @asynccontextmanager
    async def opened(many: int, _supervision: Supervision) -> AsyncIterator[Controls]:
        async with clusters(many) as nodes:
            yield [node.control for node in nodes], None

    await check_control(opened, most=3, has_server=False)
    limits = LimitOptions(connections_per_user=2, scope="cluster")
    async with clusters(1) as (parts,):
        opened_node = open_node(
            NodeOptions(limits=limits),
            control=parts.control,
            denials=parts.denials,
            user_places=parts.places,
        )
        async with opened_node as node:
            place = Place(node.places)
            await place.reserve(limits, user="ann", counted=True)
            place.take_user(limits, "ann")
            await node.denials.change(Denial(user="bob"))
            await node.denials.change(Denial(user="bob", lifted=True))
            place.leave()
