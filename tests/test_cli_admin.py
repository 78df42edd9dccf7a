"""`repeater info`, `channels` and the rest against a running server: tables, one-line errors."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from click.testing import CliRunner, Result

from repeater.access.grants import ConnectionGrant
from repeater.api.methods import call
from repeater.cli.main import main
from repeater.clients.client import Client
from repeater.clients.plain import hear
from repeater.config import load_settings
from repeater.errors import FORCE_DISCONNECT, Disconnect
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.publication import Publication
from repeater.serving.server import Server, open_server
from repeater.testing import MemoryTransport, connect
from tests.brokers import HeldHistory
from tests.deadlines import LOOP_ANSWERS

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


@asynccontextmanager
async def client_of(server: Server, user: str, *channels: str) -> AsyncIterator[Client]:
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with connect(server.node, transport, ready=False) as client:
        client.identify(ConnectionGrant(user=user))
        await hear(server.node, client, channels)
        yield client


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
    """Of the user that is named, and of no other."""
    async with running() as server, client_of(server, "alice", "a", "b") as alice:
        async with client_of(server, "", "a") as nobody:
            assert await lines(server, "unsubscribe", "--user", "alice", "a") == []
            assert set(alice.channels) == {"b"}
            assert await lines(server, "unsubscribe", "--user", "alice") == []
            assert not alice.channels
            assert set(nobody.channels) == {"a"}
            arguments = ("--user", "", "--code", "4000", "--reason", "later")
            assert await lines(server, "disconnect", *arguments) == []
            assert nobody.end == Disconnect(4_000, "later")
        assert await lines(server, "disconnect", "--user", "alice", "--client", "other") == []
        assert alice.end is None
    async with running() as server, client_of(server, "alice") as alice:
        assert await lines(server, "disconnect", "--user", "alice", "--client", alice.id) == []
        assert alice.end is FORCE_DISCONNECT


async def test_publish() -> None:
    """It prints the position, by the same way to the server."""
    async with running() as server:
        (line,) = await lines(server, "publish", "news", '{"a": 1}')
        assert json.loads(line)["offset"] == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["presence", "x:a"], "102 unknown channel"),
        (["history", ""], "107 bad request"),
        (["publish", "x:a", "1"], "102 unknown channel"),
        (["disconnect", "--user", "a", "--reason", "{}"], "107 bad request"),
    ],
)
async def test_an_error_is_one_line(arguments: list[str], error: str) -> None:
    """The API's code and text."""
    async with running() as server:
        result = await run(server, *arguments)
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {error}\n")


async def test_a_broker_that_is_down() -> None:
    """The API's text says too little to somebody at a terminal."""
    broker = HeldHistory()
    settings = load_settings(port=0, api_key=KEY)
    with trio.fail_after(LOOP_ANSWERS):
        async with open_server(settings, broker=broker) as server:
            broker.failing = True
            result = await run(server, "history", "news")
    hint = "/health/ready and the server's log say what is down"
    assert result.stderr == f"Error: 100 internal server error ({hint})\n"


async def test_a_wrong_key() -> None:
    """It says what may be wrong."""
    async with running() as server:
        result = await run(server, "info", key="wrong")
        assert result.exit_code == 1
        assert result.stderr.endswith("/api/info answered 401 (is the API key right?)\n")
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
