"""`repeater info`, `channels` and the rest against a running server: tables, one-line errors."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import msgspec
import pytest
import trio
from click.testing import CliRunner, Result

from repeater.access.grants import ConnectionGrant, SubscriptionGrant
from repeater.api.methods import call
from repeater.cli.main import main
from repeater.clients.client import Client
from repeater.clients.plain import hear
from repeater.config import load_settings
from repeater.errors import FORCE_DISCONNECT, Disconnect, open_service_nursery
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.publication import Publication
from repeater.serving.server import Server, open_server
from repeater.testing import MemoryTransport, connect
from tests.brokers import HeldHistory
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.working import open_workers

KEY = "secret"


@asynccontextmanager
async def running(key: str = KEY, **more: object) -> AsyncIterator[Server]:
    with trio.fail_after(LOOP_ANSWERS):
        settings = load_settings(port=0, api_key=key, channel={"presence": True}, **more)
        async with open_server(settings) as server:
            yield server


async def run(server: Server, *arguments: str, key: str = KEY) -> Result:
    """One command, in a thread, since the server needs this one."""
    env = {"REPEATER_URL": f"http://127.0.0.1:{server.port}/", "REPEATER_API_KEY": key}
    result = await trio.to_thread.run_sync(
        partial(CliRunner().invoke, main, list(arguments), env=env)
    )
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert KEY not in result.output
    return result


async def lines(server: Server, *arguments: str) -> list[str]:
    result = await run(server, *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.splitlines()


async def nothing(server: Server, *arguments: str) -> str:
    """The line of a command that has found nothing to change; its status is 1."""
    result = await run(server, *arguments)
    assert (result.exit_code, result.stderr) == (1, "")
    return result.stdout.rstrip("\n")


@asynccontextmanager
async def client_of(server: Server, user: str, *channels: str) -> AsyncIterator[Client]:
    """A user's connection. Its end does not cancel the block."""
    async with open_service_nursery() as nursery:
        yield await nursery.start(_be_there, server, user, channels)


async def _be_there(
    server: Server, user: str, channels: tuple[str, ...], task_status: trio.TaskStatus[Client]
) -> None:
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with connect(server.node, transport, ready=False) as client:
        client.identify(ConnectionGrant(user=user))
        await hear(server.node, client, channels)
        task_status.started(client)
        await trio.sleep_forever()


@pytest.mark.parametrize("key", ["schl\xfcssel", "\u043a\u043b\u044e\u0447 \U0001f511", "\xe0"])
async def test_a_key_that_is_not_ascii(key: str) -> None:
    """The command sends the bytes that the server compares."""
    async with running(key) as server:
        result = await run(server, "info", "--json", key=key)
        assert (result.exit_code, result.stderr) == (0, "")
        assert "401" in (await run(server, "info", key=key[:-1] + "x")).stderr


async def test_info() -> None:
    """A head, and a line for the node."""
    async with running() as server, client_of(server, "alice", "news"):
        head, node = await lines(server, "info")
        assert head.split() == [
            "NODE", "VERSION", "UPTIME", "CLIENTS", "USERS", "CHANNELS", "SUBSCRIPTIONS"
        ]  # fmt: skip
        assert node.split()[2:] == ["0:00:00", "1", "1", "1", "1"]
        (line,) = await lines(server, "info", "--json")
        assert json.loads(line)["nodes"][0]["uid"] == server.node.id


async def test_channels() -> None:
    """The fullest first, aligned; by pattern."""
    async with (
        running() as server,
        client_of(server, "a", "b", "news"),
        client_of(server, "b", "news"),
    ):
        assert await lines(server, "channels") == [
            "CHANNEL  CLIENTS",
            "news     2",
            "b        1",
        ]
        assert await lines(server, "channels", "n*") == ["CHANNEL  CLIENTS", "news     2"]
        assert await lines(server, "channels", "x") == ["CHANNEL  CLIENTS"]


async def test_presence() -> None:
    """A line for each connection; text that a terminal could obey is quoted."""
    async with running() as server, client_of(server, "é\x1b[2J") as client:
        subscribe = json.dumps({"user": client.user, "channel": "news", "info": {"a": "é"}})
        await call(server.node, "subscribe", subscribe.encode())
        _, member = await lines(server, "presence", "news")
        user = json.dumps(client.user)
        assert member == f'{user}  {client.id}                   {{"a": "é"}}'
        (line,) = await lines(server, "presence", "news", "--json")
        assert json.loads(line)["presence"][client.id]["user"] == client.user


async def test_history_of_a_binary_channel() -> None:
    """The bytes are Base64, which no terminal takes for a command."""
    async with running(namespaces={"bin": {"publication_data_format": "binary"}}) as server:
        for data in (b"\x1b[2J\xff", b""):
            await server.node.publish(Publication("bin:c", data))
        assert await lines(server, "history", "bin:c") == [
            "OFFSET  DATA             TAGS",
            "1       base64 G1sySv8=",
            "2       base64",
            f"top: offset 2 of epoch {(await server.node.history('bin:c', limit=0))[1].epoch}",
        ]


async def test_history() -> None:
    """The newest ones, in order; the top behind them."""
    async with running() as server:
        for number in range(12):
            data, tags = b'{"n":%d}' % number, {"t": "é"} if number == 11 else None
            position = await server.node.publish(Publication("news", data, tags=tags))
        assert position is not None
        top = f"top: offset 12 of epoch {position.epoch}"
        assert await lines(server, "history", "news", "--limit", "2") == [
            "OFFSET  DATA       TAGS",
            '11      {"n": 10}',
            '12      {"n": 11}  {"t": "é"}',
            top,
        ]
        assert len(await lines(server, "history", "news")) == 12
        _, newest, *_ = await lines(server, "history", "news", "--limit", "-1", "--reverse")
        assert newest.startswith("12 ")
        (line,) = await lines(server, "history", "news", "--json")
        assert json.loads(line)["publications"][-1]["data"] == {"n": 11}


async def test_unsubscribe_and_disconnect() -> None:
    """Of the user that is named, and of no other; who changes nothing is told so."""
    unsubscribe, disconnect = ("unsubscribe", "--user", "alice"), ("disconnect", "--user", "alice")
    async with running() as server, client_of(server, "alice", "a", "b") as alice:
        async with client_of(server, "", "a") as nobody:
            assert await lines(server, *unsubscribe, "a") == ["1 subscription ended"]
            assert set(alice.channels) == {"b"}
            assert await nothing(server, *unsubscribe, "a") == "0 subscriptions ended"
            assert await lines(server, *unsubscribe) == ["1 subscription ended"]
            assert not alice.channels
            assert set(nobody.channels) == {"a"}
            anonymous = ("disconnect", "--user", "", "--code", "4000", "--reason", "later")
            assert await lines(server, *anonymous) == ["1 connection closed"]
            assert nobody.end == Disconnect(4_000, "later")
        assert await nothing(server, *disconnect, "--client", "other") == "0 connections closed"
        assert alice.end is None
    async with running() as server, client_of(server, "alice") as alice:
        assert await lines(server, *disconnect, "--client", alice.id) == ["1 connection closed"]
        assert alice.end == FORCE_DISCONNECT
        assert await nothing(server, *disconnect, "--json") == '{"num_clients":0}'


async def test_publish() -> None:
    """It prints the position, by the same way to the server."""
    async with running() as server:
        (line,) = await lines(server, "publish", "news", '{"a": 1}')
        assert json.loads(line)["offset"] == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["presence", "x:a"], "102 unknown channel: there is no namespace 'x'"),
        (["history", ""], "107 bad request: channel: missing or empty"),
        (["publish", "x:a", "1"], "102 unknown channel: there is no namespace 'x'"),
        (["disconnect", "--user", "a", "--reason", "{}"], "107 bad request: disconnect.reason: "),
    ],
)
async def test_an_error_is_one_line(arguments: list[str], error: str) -> None:
    """The API's code and text, with the reason."""
    async with running() as server:
        result = await run(server, *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"Error: {error}")


async def test_a_broker_that_is_down() -> None:
    """The API's text says too little to somebody at a terminal."""
    broker = HeldHistory()
    settings = load_settings(port=0, api_key=KEY)
    with trio.fail_after(LOOP_ANSWERS):
        async with open_server(settings, broker=broker) as server:
            broker.failing = True
            result = await run(server, "history", "news")
    hint = "/health/ready and the server's log say what is down"
    assert result.stderr == f"Error: 100 internal server error: history is down ({hint})\n"


async def test_a_wrong_key() -> None:
    """It says what may be wrong."""
    async with running() as server:
        result = await run(server, "info", key="wrong")
        assert result.exit_code == 1
        assert "/api/info answered 401" in result.stderr
        assert "the API key is another one" in result.stderr
        assert result.stderr.count("\n") == 1


async def test_whose_connections() -> None:
    """A forgotten `--user` does not mean the anonymous ones."""
    async with running() as server, client_of(server, "") as nobody:
        result = await run(server, "disconnect")
        assert result.exit_code == 2
        assert nobody.end is None


def test_nobody_there() -> None:
    """One line, too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        for arguments in (["info"], ["channels"], ["publish", "a", "1"]):
            result = CliRunner().invoke(main, [*arguments, "--url", url])
            assert result.exit_code == 1
            assert result.stderr.startswith("Error: cannot reach http://127.0.0.1:")
            assert result.stderr.count("\n") == 1


async def test_block_and_unblock() -> None:
    """How many users and connections; who is blocked already is not blocked again."""
    async with running() as server, client_of(server, "alice") as alice:
        assert await lines(server, "block", "alice", "--ttl", "10m") == [
            "1 user blocked, 1 connection closed"
        ]
        assert alice.end == FORCE_DISCONNECT
        assert await lines(server, "block", "alice") == ["1 user blocked, 0 connections closed"]
        assert await nothing(server, "block", "alice") == "0 users blocked: already blocked"
        assert await lines(server, "unblock", "alice") == ["1 user unblocked"]
        assert await nothing(server, "unblock", "alice") == "0 users unblocked: not blocked"
        (line,) = await lines(server, "block", "bob", "--until", "2999-01-01T00:00:00Z", "--json")
        assert json.loads(line) == {"changed": True, "num_clients": 0, "num_subs": 0}
        denial = server.node.denials._denials["user", "bob"]
        assert denial.expire_at == 32_472_144_000
        past = await run(server, "block", "bob", "--until", "2020-01-01T00:00:00Z")
        assert past.exit_code == 1
        assert "107" in past.stderr


async def test_revoke() -> None:
    """One token, or a user's up to a time; the connections that came by one are closed."""
    async with running() as server, client_of(server, "alice", "a") as alice:
        alice.grant = msgspec.structs.replace(alice.grant, by_token=True, token_id="t", issued_at=9)
        assert await lines(server, "revoke", "--user", "alice", "--issued-before", "9") == [
            "the tokens of 1 user revoked, 0 connections closed"
        ]
        before = ("revoke", "--user", "alice", "--issued-before", "1970-01-01T00:00:08Z")
        assert await nothing(server, *before) == "0 tokens revoked: already revoked"
        by_id = ("revoke", "--token-id", "t", "--ttl", "7d")
        assert await lines(server, *by_id) == ["1 token revoked, 1 connection closed"]
    async with running() as server, client_of(server, "alice", "a") as alice:
        for subscription in alice.channels.values():
            subscription.grant = SubscriptionGrant(by_token=True, token_id="s")
        assert await lines(server, "revoke", "--token-id", "s") == [
            "1 token revoked, 0 connections closed, 1 subscription ended"
        ]
        assert alice.end is None


async def test_presence_stats() -> None:
    """Two numbers; as the API says them with `--json`."""
    async with running() as server, client_of(server, "a") as one, client_of(server, "a"):
        await server.node.subscribe(one.user, "news")
        assert await lines(server, "presence", "news", "--stats") == [
            "CLIENTS  USERS",
            "2        1",
        ]
        (line,) = await lines(server, "presence", "news", "--stats", "--json")
        assert json.loads(line) == {"num_clients": 2, "num_users": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        ["revoke"],
        ["revoke", "--user", "a", "--token-id", "t"],
        ["revoke", "--token-id", "t", "--issued-before", "1"],
        ["block", "a", "--ttl", "1m", "--until", "1"],
        ["block", "a", "--ttl", "0"],
        ["block", "a", "--ttl", "soon"],
        ["block", "a", "--until", "2999-01-01T00:00:00"],
        ["block", "a", "--until", "tomorrow"],
        ["block"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    """Status 2, before any server is asked; a time without a zone could be another one."""
    result = CliRunner().invoke(main, [*arguments, "--url", "http://127.0.0.1:1"])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


async def test_counts_over_workers() -> None:
    """Whichever worker takes the call: connections, subscriptions and blocks of all are counted."""
    settings = load_settings(port=0, api_key=KEY)
    with trio.fail_after(PROCESS_STARTS):
        async with open_workers(settings, 2) as workers, AsyncExitStack() as stack:
            ann, bob = [
                [
                    await stack.enter_async_context(client_of(server, user, "news"))
                    for server in workers.servers
                ]
                for user in ("ann", "bob")
            ]
            first = workers.servers[0]
            unsubscribe = ("unsubscribe", "--user", "ann", "news")
            assert await lines(first, *unsubscribe) == ["2 subscriptions ended"]
            assert await nothing(first, *unsubscribe) == "0 subscriptions ended"
            disconnect = ("disconnect", "--user", "ann")
            assert await lines(first, *disconnect) == ["2 connections closed"]
            assert await nothing(first, *disconnect) == "0 connections closed"
            assert await lines(first, "block", "bob") == ["1 user blocked, 2 connections closed"]
            for _ in range(4):  # the kernel chooses the worker
                assert await nothing(first, "block", "bob") == "0 users blocked: already blocked"
            assert [one.end for one in (*ann, *bob)] == [FORCE_DISCONNECT] * 4
