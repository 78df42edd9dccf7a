"""What transactions publish, from a real PostgreSQL to subscribers, while either is killed."""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
import trio

from benchmarks.peers.postgresql import PostgreSQL, binaries
from repeater.brokers.memory import MemoryBroker
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.outgoing.consumer import Consumer, open_outgoing
from repeater.outgoing.session import UnusableError
from repeater.postgres.schema import grant, migrate
from repeater.publication import Publication
from repeater.serving.server import open_server
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.pgbouncer import PGBOUNCER, pooled
from tests.postgres_databases import empty_database, some_role
from tests.postgres_servers import open_postgresql
from tests.processes import serving, starts_processes

pytestmark = [
    pytest.mark.slow,  # once is enough: nothing in it depends on the version of Python
    pytest.mark.timeout(3 * PROCESS_STARTS),
]

OPTIONS = NodeOptions(insecure=True, channel=ChannelOptions(history_size=10_000, history_ttl=600))
LARGEST = 10_000


@pytest.fixture(
    params=[
        18,
        pytest.param(
            15,
            marks=pytest.mark.skipif(binaries(15) is None, reason="PostgreSQL 15 is not installed"),
        ),
    ]
)
def server(request: pytest.FixtureRequest) -> Iterator[PostgreSQL]:
    """A server of this test's own, with the schema."""
    with open_postgresql(request.param) as server:
        migrate(server.url)
        yield server


@pytest.fixture
def server_18() -> Iterator[PostgreSQL]:
    with open_postgresql() as server:
        migrate(server.url)
        yield server


def publish(url: str, *data: str, channel: str = "news") -> None:
    """In one transaction."""
    with psycopg.connect(url) as connection:
        for one in data:
            connection.execute("SELECT repeater.publish(%s, %s::jsonb)", (channel, one))


async def heard(node: Node, channel: str = "news") -> list[str]:
    return [bytes(one.data).decode() for one in (await node.history(channel))[0]]


async def until(reached: Callable[[], bool]) -> None:
    """Nobody tells: a database is no task of ours."""
    with trio.fail_after(LOOP_ANSWERS):
        while not reached():  # noqa: ASYNC110
            await trio.sleep(0.005)


async def until_heard(node: Node, *data: str, channel: str = "news") -> None:
    with trio.fail_after(LOOP_ANSWERS):
        while (found := await heard(node, channel))[: len(data)] != list(data):
            assert len(found) <= len(data), found
            await trio.sleep(0.005)


@asynccontextmanager
async def taking(
    url: str, broker: MemoryBroker | None = None
) -> AsyncIterator[tuple[Node, Consumer]]:
    """A node that takes what is published."""
    async with (
        open_node(OPTIONS, broker=broker) as node,
        open_outgoing(node, url, largest=LARGEST) as consumer,
    ):
        yield node, consumer


async def test_a_commit_reaches_subscribers(server: PostgreSQL) -> None:
    """And a rollback nobody; on both versions that are supported and tested."""
    publish(server.url, "1")
    async with taking(server.url) as (node, consumer):
        await until_heard(node, "1")
        with psycopg.connect(server.url) as connection:
            connection.execute("SELECT repeater.publish('news', '0')")
            connection.rollback()
        publish(server.url, "2", "3")
        await until_heard(node, "1", "2", "3")
        await until(lambda: consumer.statistics().moved == 3)
        assert consumer.warnings() == []
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT count(*) FROM repeater.outgoing").fetchone() == (0,)


async def test_what_is_refused_is_in_its_table(server_18: PostgreSQL) -> None:
    """With the reason; the others come."""
    async with taking(server_18.url) as (node, consumer):
        publish(server_18.url, "1", channel="no:such")
        publish(server_18.url, f'"{"x" * LARGEST}"', "2")
        await until_heard(node, "2")
        await until(lambda: consumer.statistics().refused == 2)
    with psycopg.connect(server_18.url) as connection:
        rows = connection.execute("SELECT channel, reason FROM repeater.refused ORDER BY id")
        found = rows.fetchall()
    assert found[0][0] == "no:such"
    assert "there is no namespace 'no'" in found[0][1]
    assert f"{LARGEST + 6} bytes are more than body_limit allows" in found[1][1]


async def test_a_killed_database_loses_nothing(server: PostgreSQL) -> None:
    """The API goes on meanwhile; when the database is back, so is everything else."""
    async with taking(server.url) as (node, consumer):
        for number in range(3):
            publish(server.url, str(2 * number))
            await until_heard(node, *map(str, range(2 * number + 1)))
            server.kill()
            await until(lambda: consumer.outage() != "")
            await node.publish(Publication("news", str(2 * number + 1).encode()))
            server.start()
            await until(lambda: consumer.outage() == "")
        assert consumer.statistics().losses == 3
        publish(server.url, "6")
        await until_heard(node, *map(str, range(7)))


async def test_a_database_that_is_away_at_the_start_is_a_warning(server_18: PostgreSQL) -> None:
    """The server starts, says so and takes publications; then the database comes."""
    publish(server_18.url, "1")
    server_18.stop()
    with trio.fail_after(PROCESS_STARTS):
        async with (
            open_server(OPTIONS, port=0, outbox=server_18.url) as running,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}") as client,
        ):
            answer = await client.get("/health/ready")
            assert answer.status_code == 200
            assert answer.json()["status"] == "ok"
            [warning] = answer.json()["warnings"]
            assert warning.startswith("the database of outbox cannot be used: ")
            assert "No such file or directory" in warning
            assert "repeater_pg_up 0.0" in (await client.get("/metrics")).text
            server_18.start()
            await until_heard(running.node, "1")
            assert (await client.get("/health/ready")).json() == {"status": "ok"}
            metrics = (await client.get("/metrics")).text
            assert "repeater_pg_up 1.0" in metrics
            assert "repeater_pg_leading 1.0" in metrics


async def test_a_row_that_waits_for_long_is_a_warning(server_18: PostgreSQL) -> None:
    """Above 10 s, as every node that can ask says."""
    publish(server_18.url, "1")
    with psycopg.connect(server_18.url, autocommit=True) as connection:
        connection.execute("UPDATE repeater.outgoing SET at = at - interval '1 minute'")
        lock = "SELECT pg_advisory_lock(1380274245, 3)"  # as if another node led, and took nothing
        connection.execute(lock)
        async with taking(server_18.url) as (_node, consumer):
            await until(lambda: consumer.statistics().oldest > 0)
            assert consumer.statistics().rows == 1
            assert not consumer.statistics().leading
            [warning] = consumer.warnings()
            assert warning.startswith("what a transaction published has waited for 6")


async def test_another_node_takes_over(server_18: PostgreSQL) -> None:
    """When the one that leads ends in order; nothing is taken twice."""
    first, second = MemoryBroker(), MemoryBroker()
    async with taking(server_18.url, first) as (one, consumer):
        await until(lambda: consumer.statistics().leading)
        async with taking(server_18.url, second) as (other, standby):
            publish(server_18.url, "1")
            await until_heard(one, "1")
            assert not standby.statistics().leading
            await until(lambda: consumer.statistics().moved == 1)
            consumer.close()
            await until(lambda: standby.statistics().leading)
            publish(server_18.url, "2")
            await until_heard(other, "2")
            assert await heard(one) == ["1"]


@starts_processes
async def test_a_stopped_leader_is_replaced(server_18: PostgreSQL, tmp_path: Path) -> None:
    """The database ends its session, and what it does later has no effect."""
    folder = {"REPEATER_OUTBOX": server_18.url, "REPEATER_DATA_DIR": str(tmp_path)}
    async with serving("--dev", "--no-comments", variables=folder) as leader:
        await leader.line("this node takes what transactions publish")
        async with taking(server_18.url) as (node, consumer):
            assert not consumer.statistics().leading
            leader.process.send_signal(signal.SIGSTOP)
            publish(server_18.url, "1")
            await until_heard(node, "1")
            await until(lambda: consumer.statistics().moved == 1)
            leader.process.send_signal(signal.SIGCONT)
            await leader.line("the database of outbox cannot be used")
            publish(server_18.url, "2")
            await until_heard(node, "1", "2")
        assert await leader.end() == 0


@starts_processes
async def test_a_killed_leader_is_replaced(server_18: PostgreSQL) -> None:
    """Its session goes with it."""
    variables = {"REPEATER_OUTBOX": server_18.url}
    async with serving("--dev", "--no-comments", variables=variables) as leader:
        await leader.line("this node takes what transactions publish")
        async with taking(server_18.url) as (node, consumer):
            await leader.end(signal.SIGKILL)
            await until(lambda: consumer.statistics().leading)
            publish(server_18.url, "1")
            await until_heard(node, "1")


async def refusal(url: str) -> str:
    async with open_node(OPTIONS) as node:
        with pytest.raises(UnusableError) as caught:
            async with open_outgoing(node, url, largest=LARGEST):
                pytest.fail("it can be used")
    return str(caught.value)


async def test_a_database_that_cannot_be_used_ends_the_start(postgresql: str) -> None:
    """No schema, another version, no right: each is a sentence that says what to run."""
    with empty_database(postgresql) as url, some_role(url) as role:
        asked = url.replace("://postgres:@", f"://{role}:@")
        assert await refusal(url) == "it has no schema repeater: run `repeater postgres migrate`"
        migrate(url)
        assert await refusal(asked) == (
            "permission denied for schema repeater (42501): run `repeater postgres grant --server`"
        )
        grant(url, role, server=True)
        async with taking(asked) as (node, _consumer):
            publish(url, "1")
            await until_heard(node, "1")
        with psycopg.connect(url) as connection:
            connection.execute("UPDATE repeater.settings SET version = 2")
        assert await refusal(asked) == (
            "its schema has version 2, and this server needs 1: run `repeater postgres migrate`"
        )


async def test_a_start_that_fails_says_which_setting(postgresql: str) -> None:
    """As `repeater serve` prints it."""
    with empty_database(postgresql) as url:
        async with serving("--dev", "--no-comments", variables={"REPEATER_OUTBOX": url}) as server:
            line = await server.line("Error: ")
            assert line == (
                "Error: outbox: the database cannot be used: it has no schema repeater:"
                " run `repeater postgres migrate`\n"
            )
            with trio.fail_after(PROCESS_STARTS):
                assert await server.process.wait() == 1


async def test_a_schema_that_goes_away_is_an_outage(server_18: PostgreSQL) -> None:
    """The server runs already: it goes on, and so does what the API publishes."""
    async with taking(server_18.url) as (node, consumer):
        with psycopg.connect(server_18.url) as connection:
            connection.execute("DROP SCHEMA repeater CASCADE")
        await until(lambda: "no schema" in consumer.outage())
        await node.publish(Publication("news", b"1"))
        migrate(server_18.url)
        await until(lambda: consumer.outage() == "")
        publish(server_18.url, "2")
        await until_heard(node, "1", "2")


@pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")
async def test_publishers_may_be_behind_a_pooler_and_the_server_not(server: PostgreSQL) -> None:
    """In transaction mode. A publisher needs nothing special; a node would never hear the bell."""
    with pooled(server) as url:
        async with taking(server.url) as (node, _consumer):
            for number in range(4):
                publish(url, str(number))
            await until_heard(node, "0", "1", "2", "3")
        assert await refusal(url) == (
            "no notification comes: this is a pooler; give the database's own address"
        )
        with psycopg.connect(url) as connection:  # Nothing of ours is left in its sessions.
            assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)


@starts_processes
async def test_one_of_the_workers_takes(server_18: PostgreSQL) -> None:
    """Each has a session, and one leads; the supervisor's memory is that of all."""
    variables = {"REPEATER_OUTBOX": server_18.url, "REPEATER_CHANNEL__HISTORY_SIZE": "100"}
    variables["REPEATER_CHANNEL__HISTORY_TTL"] = "600"
    async with serving("--dev", "--workers", "2", variables=variables) as process:
        base = f"http://127.0.0.1:{await process.port()}"
        publish(server_18.url, "1", "2")
        with trio.fail_after(PROCESS_STARTS):
            async with httpx.AsyncClient(base_url=base) as client:
                while True:
                    answer = await client.post("/api/history", json={"channel": "news", "limit": 9})
                    if len(found := answer.json()["result"]["publications"]) == 2:
                        break
                    await trio.sleep(0.01)
                assert [one["data"] for one in found] == [1, 2]
                metrics = (await client.get("/metrics")).text
        leading = re.findall(r'repeater_pg_leading\{worker="\d"\} (\d)', metrics)
        assert sorted(leading) == ["0", "1"]
        assert len(re.findall(r"^repeater_pg_outgoing_rows ", metrics, re.MULTILINE)) == 1
        assert await process.end() == 0
