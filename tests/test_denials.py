"""Blocked users and revoked tokens: put out at once, not let in again, kept across a crash."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.denial_store import MemoryDenials
from repeater.access.grants import ConnectionGrant, Denial, TokenVerifier
from repeater.access.sqlite_denials import open_sqlite_denials
from repeater.access.tokens.verifier import open_verifier
from repeater.api.methods import call
from repeater.clients.client import Client
from repeater.clients.session import Session
from repeater.clients.unidirectional import UnidirectionalSession
from repeater.config import ConfigError, load_settings
from repeater.errors import (
    FORCE_DISCONNECT,
    INVALID_TOKEN,
    BrokerError,
    Disconnect,
    open_service_nursery,
)
from repeater.node import Node, open_node
from repeater.options import NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI, CENTRIFUGE_UNI_ASGI
from repeater.serving.server import open_server
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.processes import starts_processes
from tests.refusing import usual, usual_error
from tests.signing import HMAC_OPTIONS, sign


def done(clients: int = 0, subscriptions: int = 0, *, changed: bool = True) -> dict[str, Any]:
    """The answer of a call that has refused somebody, with what it has ended."""
    result = {"changed": changed, "num_clients": clients, "num_subs": subscriptions}
    return {"result": result}


BAD_REQUEST = {"code": 107, "message": "bad request"}


@asynccontextmanager
async def proving_node(options: NodeOptions | None = None) -> AsyncIterator[Node]:
    """A node that knows whose tokens are whose."""
    async with (
        open_verifier(HMAC_OPTIONS) as verifier,
        open_test_node(options, verifier=verifier) as node,
    ):
        yield node


class Talk:
    """A client with a token, and what becomes of it."""

    def __init__(self, session: Session, transport: MemoryTransport) -> None:
        self._session = session
        self._transport = transport

    @property
    def end(self) -> Disconnect | None:
        return self._session._client.end

    async def say(self, method: str, **fields: object) -> list[Any]:
        """One command; everything that comes of it."""
        before = len(self._transport.sent)
        await self._session.receive(json.dumps({method: fields, "id": 2}))
        return self.heard(before)

    def heard(self, since: int = 0) -> list[Any]:
        return [json.loads(chunk) for chunk in self._transport.sent[since:]]


@asynccontextmanager
async def talking(node: Node, **claims: object) -> AsyncIterator[Talk]:
    """A client that connects with a token of these claims. Its end does not cancel the block."""
    async with open_service_nursery() as nursery:
        yield await nursery.start(_talk, node, claims)


async def _talk(node: Node, claims: dict[str, object], task_status: trio.TaskStatus[Talk]) -> None:
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with connect(node, transport, ready=False) as client:
        talk = Talk(Session(node, client), transport)
        await talk.say("connect", token=sign(claims))
        # A client that is refused is cancelled already, and tells so nevertheless.
        task_status.started(talk)
        await trio.sleep_forever()


async def ask(node: Node, method: str, **fields: object) -> Any:
    """One call of the API."""
    return json.loads((await call(node, method, json.dumps(fields).encode())).body)


# ---- users


async def test_a_blocked_user_is_put_out_and_not_let_in() -> None:
    """3503, which is final: the connections that are there, new ones, and nobody else's."""
    async with (
        proving_node() as node,
        talking(node, sub="ann") as first,
        talking(node, sub="ann") as second,
        talking(node, sub="bob") as bob,
    ):
        assert await ask(node, "block_user", user="ann") == done(2)
        assert await ask(node, "block_user", user="ann") == done(changed=False)
        assert first.end == second.end == FORCE_DISCONNECT
        async with talking(node, sub="ann") as late, talking(node, sub="bob") as other:
            assert usual(late.end) == FORCE_DISCONNECT
            assert bob.end is other.end is None
        assert node.statistics().limited == {"blocked": 1}
        assert await ask(node, "unblock_user", user="ann") == {"result": {"changed": True}}
        assert await ask(node, "unblock_user", user="ann") == {"result": {"changed": False}}
        async with talking(node, sub="ann") as back:
            assert back.end is None
        assert node.statistics().denials == 0


async def test_a_blocked_user_is_known_by_more_than_a_token() -> None:
    """Who is known by the HTTP request is blocked alike; a unidirectional client is told, too."""
    async with (
        open_test_node() as node,
        connect(node, MemoryTransport(CENTRIFUGE_UNI_ASGI), ready=False) as client,
    ):
        await ask(node, "block_user", user="ann")
        client.grant = ConnectionGrant("ann")
        await UnidirectionalSession(node, client).receive("{}")
        assert usual(client.end) == FORCE_DISCONNECT


async def test_a_block_ends_by_itself(autojump_clock: MockClock) -> None:
    """At its time, whether or not the sweep has come by; then nothing is kept of it."""
    async with proving_node() as node:
        await ask(node, "block_user", user="ann", ttl=30)
        await trio.sleep(29)
        async with talking(node, sub="ann") as talk:
            assert usual(talk.end) == FORCE_DISCONNECT
        await trio.sleep(3)
        async with talking(node, sub="ann") as talk:
            assert talk.end is None
        assert node.statistics().denials == 1
        await trio.sleep(60)
        assert node.statistics().denials == 0


async def test_a_block_while_a_connect_is_under_way() -> None:
    """A client whose connect is under way when the block comes is not let in."""

    class Slow:
        async def verify_connection(self, token: str) -> ConnectionGrant:
            await answer.wait()
            return ConnectionGrant("ann", by_token=True)

    answer = trio.Event()
    async with (
        open_test_node(verifier=cast("TokenVerifier", Slow())) as node,
        connect(node, MemoryTransport(CENTRIFUGE_JSON_ASGI), ready=False) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(Session(node, client).receive, b'{"connect":{"token":"x"},"id":1}')
        await wait_all_tasks_blocked()
        await ask(node, "block_user", user="ann")
        answer.set()
        await wait_all_tasks_blocked()
        assert usual(client.end) == FORCE_DISCONNECT


# ---- tokens


@pytest.mark.parametrize("name", ["jti", "uid"])
async def test_a_revoked_token_proves_nothing(name: str) -> None:
    """3500 for its connections, old and new; the user's other connections stay."""
    async with (
        proving_node() as node,
        talking(node, sub="ann", jti="t1") as one,
        talking(node, sub="ann", jti="t2") as other,
        talking(node, sub="ann") as unnamed,
    ):
        assert await ask(node, "revoke_token", **{name: "t1"}) == done(1)
        assert one.end == INVALID_TOKEN
        assert (other.end, unnamed.end) == (None, None)
        async with talking(node, sub="ann", jti="t1") as late:
            assert usual(late.end) == INVALID_TOKEN
        assert node.statistics().limited == {"revoked": 1}
        await other.say("refresh", token=sign({"sub": "ann", "jti": "t1"}))
        assert usual(other.end) == INVALID_TOKEN
        assert node.statistics().limited == {"revoked": 2}


async def test_a_users_older_tokens_are_revoked() -> None:
    """Those issued before the time, and those that do not say when; newer ones are good."""
    async with (
        proving_node() as node,
        talking(node, sub="ann", iat=1_000) as old,
        talking(node, sub="ann", iat=2_000) as new,
        talking(node, sub="ann") as ageless,
        talking(node, sub="bob", iat=1_000) as bob,
        connect(node, MemoryTransport()) as asked,
    ):
        asked.identify(ConnectionGrant("ann"))  # by a back end's word, without a token
        assert await ask(node, "revoke_token", user="ann", issued_before=2_000) == done(2)
        earlier = await ask(node, "revoke_token", user="ann", issued_before=1_000)
        assert earlier == done(changed=False)
        assert old.end == ageless.end == INVALID_TOKEN
        assert new.end is bob.end is asked.end is None
        async with talking(node, sub="ann", iat=1_999) as late:
            assert usual(late.end) == INVALID_TOKEN


async def test_all_of_a_users_tokens_up_to_now() -> None:
    """Without a time: what was issued so far. One that is issued later is good."""
    async with proving_node() as node, talking(node, sub="ann", iat=int(time.time())) as talk:
        assert await ask(node, "revoke_token", user="ann") == done(1)
        assert usual(talk.end) == INVALID_TOKEN
        later = int(node.unix_time()) + 2
        grant = ConnectionGrant("ann", issued_at=later, by_token=True)
        assert node.denials.refusal(grant) is None


async def test_a_revocation_is_never_weakened_by_another() -> None:
    """The later of the two times counts, and the later end."""
    async with proving_node() as node:
        end = int(time.time()) + 1_000
        await ask(node, "revoke_token", user="ann", issued_before=2_000)
        await ask(node, "revoke_token", user="ann", issued_before=1_000, expire_at=end)
        (kept,) = node.denials._denials.values()
        assert kept == Denial(user="ann", issued_before=2_000)


async def test_unblocking_does_not_make_tokens_good() -> None:
    """They are two different things."""
    async with proving_node() as node:
        await ask(node, "revoke_token", user="ann", issued_before=2_000)
        await ask(node, "unblock_user", user="ann")
        async with talking(node, sub="ann", iat=1_000) as talk:
            assert usual(talk.end) == INVALID_TOKEN


async def test_a_revoked_subscription_token_ends_its_subscription() -> None:
    """The subscription that it opened, with 2000, which is final; the connection goes on."""
    async with proving_node() as node, talking(node, sub="ann") as talk:
        token = sign({"sub": "ann", "channel": "$one", "jti": "s1"})
        await talk.say("subscribe", channel="$one", token=token)
        await talk.say("subscribe", channel="two")
        before = len(talk.heard())
        await ask(node, "revoke_token", jti="s1")
        assert talk.heard(before) == [
            {
                "push": {
                    "channel": "$one",
                    "unsubscribe": {"code": 2000, "reason": "server unsubscribe"},
                }
            }
        ]
        assert talk.end is None
        assert set(node.hub.channels) == {"two"}
        await talk.say("subscribe", channel="$one", token=token)
        assert usual(talk.end) == INVALID_TOKEN


async def test_a_subscription_is_not_refreshed_by_a_revoked_token() -> None:
    """As a connection is not."""
    async with proving_node() as node, talking(node, sub="ann") as talk:
        claims = {"sub": "ann", "channel": "$one"}
        await talk.say("subscribe", channel="$one", token=sign({**claims, "jti": "good"}))
        await ask(node, "revoke_token", jti="bad")
        await talk.say("sub_refresh", channel="$one", token=sign({**claims, "jti": "bad"}))
        assert usual(talk.end) == INVALID_TOKEN


# ---- the calls


NO_USER: list[dict[str, object]] = [
    {},
    {"user": ""},
    {"user": 1},
    {"user": None},
    {"user": "x" * 1_025},
]
NO_TIME: list[dict[str, object]] = [
    {"user": "a", "ttl": -1},
    {"user": "a", "ttl": 1.5},
    {"user": "a", "ttl": 2**63},
    {"user": "a", "expire_at": 1},
    {"user": "a", "ttl": 5, "expire_at": 2**50},
]
NO_TOKEN: list[dict[str, object]] = [
    {"jti": "a", "user": "b"},
    {"jti": "a", "uid": "a"},
    {"jti": "a", "issued_before": 5},
    {"user": "a", "issued_before": -1},
]


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        *(("block_user", fields) for fields in NO_USER + NO_TIME),
        *(("unblock_user", fields) for fields in NO_USER),
        *(("revoke_token", fields) for fields in NO_USER + NO_TIME + NO_TOKEN),
    ],
)
async def test_what_makes_no_sense_is_refused(method: str, fields: dict[str, object]) -> None:
    """Error 107, and nothing is done."""
    async with open_test_node() as node:
        answer = await ask(node, method, **fields)
        assert usual_error(answer["error"]) == BAD_REQUEST
        assert node.statistics().denials == 0


async def test_a_batch_may_deny() -> None:
    """Item by item, like any other call."""
    async with open_test_node() as node:
        commands = [{"block_user": {"user": "ann"}}, {"revoke_token": {}}]
        first, second = (await ask(node, "batch", commands=commands))["replies"]
        assert first == {"block_user": done()["result"]}
        assert usual_error(second["error"]) == BAD_REQUEST
        assert node.statistics().denials == 1


async def test_there_are_so_many_denials_and_no_more(autojump_clock: MockClock) -> None:
    """One more is refused with 106; changing one is not, and an expired one makes room."""
    async with open_test_node(NodeOptions(denial_limit=2)) as node:
        await ask(node, "block_user", user="ann", ttl=10)
        await ask(node, "block_user", user="bob")
        refused = await ask(node, "block_user", user="cid")
        assert refused["error"]["code"] == 106
        assert "raise denial_limit" in refused["error"]["message"]
        assert await ask(node, "block_user", user="bob") == done(changed=False)
        await trio.sleep(12)
        assert await ask(node, "block_user", user="cid") == done()


class FailingDenials(MemoryDenials):
    """A store whose disk is full."""

    async def save(self, denial: Denial) -> None:
        raise BrokerError("no room")


async def test_what_could_not_be_kept_does_not_hold() -> None:
    """The call fails with 100, and the user stays: nothing is half done."""
    async with (
        open_node(NodeOptions(insecure=True), denials=FailingDenials()) as node,
        connect(node, MemoryTransport()) as client,
    ):
        client.identify(ConnectionGrant("ann"))
        answer = await ask(node, "block_user", user="ann")
        assert usual_error(answer["error"]) == {"code": 100, "message": "internal server error"}
        assert client.end is None
        assert node.statistics().denials == 0


class SharedDenials(MemoryDenials):
    """A store that another node writes to."""

    def __init__(self) -> None:
        self.send, self._received = trio.open_memory_channel[Denial](1)

    async def run(self, apply: Any) -> None:
        async for denial in self._received:
            await apply(denial)


async def test_what_another_node_denies_holds_here() -> None:
    """A shared store tells; a denied client is cut, and let in again when the block is lifted."""
    store = SharedDenials()
    async with (
        store.send,
        open_node(NodeOptions(insecure=True), denials=store) as node,
        connect(node, MemoryTransport()) as client,
    ):
        client.identify(ConnectionGrant("ann"))
        await store.send.send(Denial(user="ann"))
        await wait_all_tasks_blocked()
        assert client.end == FORCE_DISCONNECT
        await store.send.send(Denial(user="ann", lifted=True))
        await wait_all_tasks_blocked()
        assert node.denials.refusal(ConnectionGrant("ann")) is None


async def test_many_connections_are_searched_in_turns() -> None:
    """A revocation by `jti` looks at every client, and lets others run meanwhile."""
    async with open_test_node() as node, trio.open_nursery() as nursery:
        clients = []
        for number in range(2_500):
            client = Client(node.registry, MemoryTransport(), trio.CancelScope(), ready=True)
            client.identify(ConnectionGrant("u", token_id=f"t{number % 2}", by_token=True))
            clients.append(client)
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(others)
        before = turns
        await ask(node, "revoke_token", jti="t1")
        assert turns - before >= 2
        assert sum(client.end is INVALID_TOKEN for client in clients) == 1_250
        nursery.cancel_scope.cancel()
        for client in clients:
            client.cut(FORCE_DISCONNECT)


# ---- the file


async def test_the_file_brings_everything_back(tmp_path: Path) -> None:
    """Users, tokens, times and ends; what was lifted or has expired is gone."""
    path = tmp_path / "made" / "denials.sqlite3"
    kept = [
        Denial(user="ann"),
        Denial(user="ann", issued_before=2_000, expire_at=9_000),
        Denial(token_id="ann", expire_at=2**53),
        Denial(user="\u0000 'bob' \U0001f600", expire_at=5_000),
    ]
    async with open_sqlite_denials(path) as store:
        for denial in (Denial(user="ann", expire_at=7), *kept, Denial(user="cid", expire_at=3)):
            await store.save(denial)
        await store.save(Denial(user="dan"))
        await store.save(Denial(user="dan", lifted=True))
        await store.sweep(3)
    async with open_sqlite_denials(path) as store:
        assert sorted(await store.load(), key=repr) == sorted(kept, key=repr)


async def test_a_file_that_is_none_of_ours_is_a_mistake_of_the_configuration(
    tmp_path: Path,
) -> None:
    """The server does not start without the blocks that it was told to keep."""
    (tmp_path / "denials.sqlite3").write_bytes(b"this is not a database" * 100)
    with pytest.raises(ConfigError, match=r"data_dir: .*not a database"):
        async with open_server(load_settings(dev=True, port=0, data_dir=str(tmp_path))):
            raise AssertionError("it started")


async def test_a_file_that_is_held_by_another_fails_the_call(tmp_path: Path) -> None:
    """In bounded time, and nothing is changed."""
    path = tmp_path / "denials.sqlite3"
    async with open_sqlite_denials(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        try:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(BrokerError, match="locked"):
                await store.save(Denial(user="ann"))
        finally:
            other.close()
        assert await store.load() == []


SERVER = """
import sys, trio
from repeater.config import load_settings
from repeater.serving.process import serve

async def main():
    async with trio.open_nursery() as nursery:
        settings = load_settings(dev=True, port=0, data_dir=sys.argv[1])
        print(await nursery.start(serve, settings), flush=True)

trio.run(main)
"""
BLOCK = b'{"user":"ann"}'


@starts_processes
async def test_a_block_survives_the_death_of_the_process(tmp_path: Path) -> None:
    """Answered, then killed with the signal that nothing can handle: the next process knows it."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", SERVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        port = int(await process.stdout.receive_some())
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            head = b"POST /api/block_user HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
            await stream.send_all(head % len(BLOCK) + BLOCK)
            assert b" 200 " in await stream.receive_some()
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await process.stdout.aclose()
    settings = load_settings(dev=True, port=0, data_dir=str(tmp_path))
    async with open_server(settings) as server:
        assert server.node.denials.refusal(ConnectionGrant("ann")) is FORCE_DISCONNECT
        assert server.node.denials.refusal(ConnectionGrant("bob")) is None


async def test_without_a_chosen_place_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was told no `data_dir` leaves no file behind."""
    monkeypatch.chdir(tmp_path)
    async with open_server(load_settings(dev=True, port=0)) as server:
        assert await ask(server.node, "block_user", user="ann") == done()
    assert os.listdir(tmp_path) == []
