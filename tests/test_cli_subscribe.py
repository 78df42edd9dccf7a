"""`repeater subscribe` as a user, with a token, and with what the user may do."""

from __future__ import annotations

import json
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest
import trio
from click.testing import CliRunner, Result

from repeater.access.grants import ConnectionGrant, TokenExpiredError
from repeater.cli.main import main
from repeater.cli.subscribe import _end_if_expired
from repeater.clients.client import Client
from repeater.config import Settings
from repeater.errors import EXPIRED
from repeater.publication import Publication
from repeater.serving.server import Server, open_server
from tests.deadlines import LOOP_ANSWERS
from tests.signing import SECRET, sign

T = TypeVar("T")

KEY = "the-key-of-the-file-0123456789abcdef"
FILE = f"""
port = PORT
api_key = "{KEY}"
[token]
hmac_secret_key = "{SECRET}"
audience = "rt"
issuer = "us"
user_id_claim = "uid"
[subscription_token]
hmac_secret_key = "{SECRET[::-1]}"
[namespaces.chat]
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
history_size = 0
history_meta_ttl = "30d"
presence = true
"""


@pytest.fixture(autouse=True)
def _empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@asynccontextmanager
async def running() -> AsyncIterator[Server]:
    """A server that wants tokens, and its file in this directory."""
    values = tomllib.loads(FILE.replace("PORT", "0"))
    with trio.fail_after(LOOP_ANSWERS):
        async with open_server(Settings(**values)) as server:
            _write(FILE.replace("PORT", str(server.port)))
            yield server


def _write(text: str) -> None:
    Path("repeater.toml").write_text(text)


async def run(*arguments: str, given: str = "", **variables: str) -> Result:
    runner = CliRunner()
    invoke = partial(runner.invoke, main, ["subscribe", *arguments], env=variables, input=given)
    result = await trio.to_thread.run_sync(invoke)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    for secret in (KEY, SECRET, SECRET[::-1]):
        assert secret not in result.output
    return result


async def heard(server: Server, *arguments: str, given: str = "") -> tuple[Result, Client]:
    """What the command prints of one event, until the server ends its connection."""
    results: list[Result] = []

    async def listen() -> None:
        results.append(await run(*arguments, given=given))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        clients = server.node.registry.clients
        (client,) = await until(lambda: [one for one in clients if one.channels])
        (channel,) = client.channels
        await server.node.publish(Publication(channel, b'{"n":1}'))
        await until(lambda: server.node.statistics().repeater.deliveries)
        await server.node.disconnect(client.user)
    (result,) = results
    assert result.exit_code == 1
    assert result.stderr.endswith("Error: disconnected: 3503 force disconnect\n")
    return result, client


async def until(found: Callable[[], T]) -> T:
    """What it gives as soon as that is something: the command is in another thread."""
    while not (value := found()):  # noqa: ASYNC110
        await trio.sleep(0.005)
    return value


async def test_as_a_user() -> None:
    """The token has the configured claims; the connection has the user's permissions, no more."""
    async with running() as server:
        result, client = await heard(server, "chat:1", "--user", "ann")
        assert (client.user, result.stdout) == ("ann", '{"n":1}\n')
        refused = await run("news", "--user", "ann")
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr == (
            "Error: cannot subscribe to news: 103 permission denied "
            "(--channel-info says which rule)\n"
        )


@pytest.mark.parametrize("channel", ["news", "$chat:secret"])
async def test_grant_opens_any_channel(channel: str) -> None:
    """By a subscription token, which has a secret of its own here."""
    async with running() as server:
        result, client = await heard(server, channel, "--user", "ann", "--grant")
        assert (client.user, list(client.channels), result.stdout) == ("ann", [], '{"n":1}\n')


@pytest.mark.parametrize("way", ["option", "standard input"])
async def test_with_a_token(way: str) -> None:
    """Also where it must not show in the list of processes."""
    token = sign({"uid": "bob", "aud": "rt", "iss": "us"})
    async with running() as server:
        arguments = ("--token", token if way == "option" else "-")
        result, client = await heard(server, "chat:1", *arguments, given=f"{token}\n")
        assert client.user == "bob"
        assert token not in result.output


async def test_without_credentials() -> None:
    """The server wants some, and the line says how to give them."""
    async with running():
        result = await run("chat:1")
        assert result.exit_code == 1
        assert result.stderr.endswith(" (neither --user nor --token was given)\n")


async def test_a_wrong_token() -> None:
    """The server tells a client no more than the code, so the line says where the reason is."""
    async with running():
        result = await run("chat:1", "--token", "wrong")
        assert result.exit_code == 1
        told = "Error: disconnected: 3500 invalid token (the server's log says why)\n"
        assert result.stderr.endswith(told)


async def test_the_hint_is_for_a_refusal_only() -> None:
    """An anonymous client that an operator ends was not asked for credentials."""
    with trio.fail_after(LOOP_ANSWERS):
        async with open_server(Settings(port=0, dev=True)) as server:
            result, _ = await heard(server, "news", "--url", f"http://127.0.0.1:{server.port}")
            assert result.stderr.splitlines()[-1] == "Error: disconnected: 3503 force disconnect"


async def test_what_the_user_may_do() -> None:
    """Each action with its rule or setting, then the options that are not at their defaults."""
    async with running() as server:
        result, _ = await heard(server, "chat:1", "--user", "ann", "--channel-info")
        assert result.stderr.splitlines()[:12] == [
            "chat:1 for user 'ann':",
            "  connect    yes   with a token of this user",
            "  subscribe  yes   allow_subscribe_for_client is true in [namespaces.chat]",
            "  publish    yes   allow_publish_for_subscriber is true in [namespaces.chat]",
            "  presence   no    clients may not ask who is in this channel "
            "(set allow_presence_for_client or allow_presence_for_subscriber = true in "
            "[namespaces.chat])",
            "  history    no    the channel keeps no history "
            "(set history_size and history_ttl in [namespaces.chat])",
            "  options of [namespaces.chat], others are at their defaults:",
            "    history_size = 0",
            "    presence = true",
            "    allow_subscribe_for_client = true",
            "    allow_publish_for_subscriber = true",
            f"subscribed to chat:1 on http://127.0.0.1:{server.port}",
        ]
        assert result.stdout == '{"n":1}\n'


async def test_an_anonymous_client_and_an_unknown_namespace() -> None:
    """Both are told before the server refuses them."""
    async with running():
        result = await run("chat:1", "--channel-info")
        assert result.stderr.splitlines()[:3] == [
            "chat:1 for an anonymous client:",
            "  connect    no    anonymous clients may not connect "
            "(set allow_anonymous = true, or send a token)",
            "  subscribe  no    anonymous clients may not subscribe to this channel "
            "(connect with a token, or set allow_subscribe_for_anonymous = true in "
            "[namespaces.chat])",
        ]
        assert "102 unknown channel" in (await run("nix:1", "--channel-info")).stderr


async def test_a_token_is_not_made_for_another_server() -> None:
    """Who reads it there could be this user here."""
    async with running() as server:
        url = f"http://127.0.0.1:{server.port}"
        result = await run("chat:1", "--user", "ann", "--url", url)
        assert result.exit_code == 2
        assert "give --config, or --token" in result.stderr
        arguments = ("chat:1", "--user", "ann", "--url", url, "--config", "repeater.toml")
        assert (await heard(server, *arguments))[1].user == "ann"


@pytest.mark.parametrize(
    "arguments", [("--user", "a", "--token", "b"), ("--grant",), ("--token", "b", "--grant")]
)
def test_options_that_exclude_each_other(arguments: tuple[str, ...]) -> None:
    """Status 2."""
    url = ("--url", "http://127.0.0.1:1")
    assert CliRunner().invoke(main, ["subscribe", "a", *arguments, *url]).exit_code == 2


def test_no_secret_to_make_a_token_with() -> None:
    """It is said before anything is printed."""
    result = CliRunner().invoke(main, ["subscribe", "a", "--user", "ann"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert json.dumps(result.stderr).startswith('"Error: no secret: set REPEATER_TOKEN__HMAC')


async def test_a_token_that_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    """With it the next attempt would fail as well: the command ends, and says what it needs."""
    token = sign({"uid": "bob", "aud": "rt", "iss": "us", "exp": 2**33})
    async with running() as server, trio.open_nursery() as nursery:
        results: list[Result] = []

        async def listen() -> None:
            results.append(await run("chat:1", "--token", token))

        nursery.start_soon(listen)
        await until(lambda: server.node.statistics().subscriptions)

        async def expired(_token: str) -> ConnectionGrant:
            raise TokenExpiredError("expired")

        monkeypatch.setattr(server.node, "verifier", SimpleNamespace(verify_connection=expired))
        await server.node.disconnect("bob", why=EXPIRED)
    (result,) = results
    assert result.exit_code == 1
    *_, again, last = result.stderr.splitlines()
    assert again.startswith("disconnected: 3005 ")
    assert last.startswith("Error: 109 token expired")
    assert last.endswith("; give a new --token")


def test_other_pauses_are_said_only(capsys: pytest.CaptureFixture[str]) -> None:
    """A lost connection does not make a token useless."""
    _end_if_expired("connection lost", 1.25)
    assert capsys.readouterr().err == "connection lost; trying again in 1.2 s\n"
