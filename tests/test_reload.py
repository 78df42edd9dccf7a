"""Reading the configuration again: all of what can be applied, or nothing; nobody is touched."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
import trio.testing
import trio_websocket
from trio.testing import wait_all_tasks_blocked

from repeater.access.grants import (
    ConnectionGrant,
    SubscriptionClaims,
    SubscriptionGrant,
    TokenInvalidError,
)
from repeater.config import (
    ConfigError,
    CurrentSettings,
    TokenSettings,
    load_settings,
    reloadable,
    with_live_of,
)
from repeater.errors import ReplyError
from repeater.node import open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import Publication
from repeater.serving.assembly import Assembly, open_assembly
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.application import Application, open_asking_node
from tests.brokers import TestBroker
from tests.conversation import FakeVerifier, members, talking
from tests.deadlines import LOOP_ANSWERS
from tests.processes import serving, starts_processes
from tests.signing import OTHER_SECRET, SECRET, sign

PEM = "-----BEGIN PUBLIC KEY-----\nnonsense\n-----END PUBLIC KEY-----"


def test_live_settings_are_taken() -> None:
    """What is live is new, what needs a restart is as it was, and they are told apart."""
    old = load_settings(api_key="old", port=1, channel={"history_size": 1}, ping_interval=20)
    new = load_settings(
        api_key="new",
        port=2,
        channel={"history_size": 2},
        namespaces={"chat": {"presence": True}},
        channel_limit=7,
        ping_interval=30,
    )
    changes = reloadable(old, new)
    assert set(changes.live) == {
        "api_key",
        "channel.history_size",
        "channel_limit",
        "namespaces.chat",
    }
    assert set(changes.restart) == {"port", "ping_interval"}
    merged = with_live_of(old, new)
    assert reloadable(merged, new) == ((), changes.restart)
    assert merged.api_keys == (b"new",)
    assert merged.port == 1
    options = merged.node_options()
    assert options.channel.history_size == 2
    assert options.namespaces["chat"].presence
    assert (options.channel_limit, options.ping_interval) == (7, 20)


def test_the_kinds_of_events_need_a_restart() -> None:
    """The reload names them; until then the old ones are told."""
    callbacks = {"event_url": "http://app.example/events", "secret": "s" * 32}
    old = load_settings(callbacks=callbacks)
    new = load_settings(callbacks={**callbacks, "events": ["connected"]})
    assert reloadable(old, new) == ((), ("callbacks.events",))
    assert with_live_of(old, new).callback_options() == old.callback_options()


def test_a_permission_goes_as_it_came() -> None:
    """`allow_anonymous` opens the channels, and closes them again when it is taken back."""
    closed, opened = load_settings(), load_settings(allow_anonymous=True)
    through = with_live_of(closed, opened)
    assert through.node_options().channel.allow_subscribe_for_anonymous
    back = with_live_of(through, closed)
    assert not back.node_options().channel.allow_subscribe_for_anonymous
    assert reloadable(back, closed) == ((), ())


def test_what_does_not_go_together_is_refused() -> None:
    """A live setting that is right only with one that needs a restart is not taken."""
    old = load_settings(batch_limit=1_000_000)
    new = load_settings(batch_limit=65_536, outbox_limit=100_000)
    with pytest.raises(ConfigError, match=r"not without a restart: .*batch_limit"):
        with_live_of(old, new)


@asynccontextmanager
async def assembled(**settings: object) -> AsyncIterator[Assembly]:
    async with open_assembly(CurrentSettings(load_settings(**settings))) as assembly:
        yield assembly


async def test_channel_options_change_under_a_subscriber() -> None:
    """A namespace comes and goes; who is subscribed stays, and hears on where it still is."""
    transport = MemoryTransport()
    async with assembled() as assembly, connect(assembly.node, transport, ["chat:a"]) as client:
        node = assembly.node
        with pytest.raises(ReplyError, match="102"):
            await node.publish(Publication("chat:a", b"1"))
        await assembly.reload(load_settings(namespaces={"chat": {"history_size": 0}}))
        assert await node.publish(Publication("chat:a", b"2")) is None
        await assembly.reload(load_settings(namespaces={"chat": {"history_size": 5}}))
        assert await node.publish(Publication("chat:a", b"3")) is not None
        await trio.testing.wait_all_tasks_blocked()
        await assembly.reload(load_settings())
        with pytest.raises(ReplyError, match="102"):
            await node.publish(Publication("chat:a", b"4"))
        assert client.end is None
        assert set(client.channels) == {"chat:a"}
    assert transport.sent == [b"2", b"3"]


def with_history(size: int) -> NodeOptions:
    return NodeOptions(insecure=True, channel=ChannelOptions(history_size=size))


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("while_off", [0, 1])
async def test_history_is_switched_off_and_on(before: int, while_off: int) -> None:
    """A subscriber that missed an event while history was off is never told that it has all."""

    async with open_test_node(with_history(100)) as node:
        for _ in range(before):
            await node.publish(Publication("c", b"1"))
        async with talking(node) as talk:
            position = await talk.subscribe(recoverable=True)
        node.reload(with_history(0))
        for _ in range(while_off):
            await node.publish(Publication("c", b"2"))
        node.reload(with_history(100))
        async with talking(node) as talk:
            since = {"offset": position.get("offset", 0), "epoch": position["epoch"]}
            back = await talk.subscribe(recoverable=True, recover=True, **since)
            assert back.get("recovered", False) is not bool(while_off)
            await node.publish(Publication("c", b"3"))
            assert await talk.data() == [3]


async def test_history_is_made_shorter() -> None:
    """A subscriber that missed an event that a shorter history forgot is told so."""
    async with open_test_node(with_history(100)) as node:
        async with talking(node) as talk:
            position = await talk.subscribe(recoverable=True)
        since = {"offset": 0, "epoch": position["epoch"]}
        for number in range(3):
            await node.publish(Publication("c", b"%d" % number))
        for size in (2, 100):
            node.reload(with_history(size))
            await node.publish(Publication("c", b"3"))
        async with talking(node) as talk:
            back = await talk.subscribe(recoverable=True, recover=True, **since)
            assert not back.get("recovered", False)


def token(secret: str) -> str:
    return sign({"sub": "42"}, secret)


async def test_token_keys_change() -> None:
    """Another secret proves from now on; without any change the verifier stays the same."""
    async with assembled(token={"hmac_secret_key": SECRET}) as assembly:
        verifier = assembly.node.verifier
        assert verifier is assembly._verifier
        assert (await verifier.verify_connection(token(SECRET))).user == "42"
        first = assembly._verifier._verifier
        await assembly.reload(load_settings(token={"hmac_secret_key": SECRET}, api_key="k"))
        assert assembly._verifier._verifier is first
        await assembly.reload(load_settings(token={"hmac_secret_key": OTHER_SECRET}))
        with pytest.raises(TokenInvalidError):
            await verifier.verify_connection(token(SECRET))
        assert (await verifier.verify_connection(token(OTHER_SECRET))).user == "42"


async def test_a_key_of_no_use_changes_nothing() -> None:
    """With a wrong key the whole configuration is refused: the API key stays, too."""
    async with assembled(api_key="old", token={"hmac_secret_key": SECRET}) as assembly:
        # As it would be if the key had been right when the configuration was read.
        wrong = TokenSettings(rsa_public_key=PEM)  # type: ignore[call-arg]
        new = load_settings(api_key="new").model_copy(update={"token": wrong})
        with pytest.raises(ConfigError, match="rsa_public_key"):
            await assembly.reload(new)
        assert assembly._settings().api_keys == (b"old",)
        assert (await assembly._verifier.verify_connection(token(SECRET))).user == "42"


async def test_replaced_verifiers_end(autojump_clock: trio.testing.MockClock) -> None:
    """A verifier that was replaced is closed once nobody can be waiting for it."""
    async with assembled() as assembly:
        tasks = len(assembly._verifier._nursery.child_tasks)
        for secret in (SECRET, OTHER_SECRET, SECRET):
            await assembly.reload(load_settings(token={"hmac_secret_key": secret}))
        assert len(assembly._verifier._nursery.child_tasks) == tasks + 3
        await trio.sleep(60)
        assert len(assembly._verifier._nursery.child_tasks) == tasks


CONFIG = """
api_key = "{key}"
allow_anonymous = true
log_level = "{level}"
head_limit = {head_limit}
"""


@starts_processes
async def test_signal_to_a_process(tmp_path: Path) -> None:
    """SIGHUP changes the key under a subscriber, names what needs a restart, refuses mistakes."""
    file = trio.Path(tmp_path / "repeater.toml")
    await file.write_text(CONFIG.format(key="old-key", level="info", head_limit=16_384))
    async with serving("--config", str(file)) as server:
        port = await server.port()

        async def reload(text: str) -> str:
            """Have another configuration read; the line that says what came of it."""
            await file.write_text(text)
            server.process.send_signal(signal.SIGHUP)
            return (await server.line("] the ")).rstrip()  # a refused call names a configuration

        with trio.fail_after(LOOP_ANSWERS):
            url = f"ws://127.0.0.1:{port}/ws?channel=a"
            async with trio_websocket.open_websocket_url(url) as subscriber:

                async def publish(key: str) -> int:
                    address = f"http://127.0.0.1:{port}/api/publish"
                    body, headers = {"channel": "a", "data": 1}, {"X-API-Key": key}
                    async with httpx.AsyncClient() as http:
                        return (await http.post(address, json=body, headers=headers)).status_code

                assert [await publish("old-key"), await publish("new-key")] == [200, 401]
                text = CONFIG.format(key="new-key", level="info", head_limit=9_999)
                said = await reload(text)
                assert said.endswith("applied=['api_key'] needs_restart=['head_limit']")
                assert [await publish("old-key"), await publish("new-key")] == [401, 200]

                said = await reload('api_key = "third-key"\nprot = 1\nping_interval = "x"')
                assert "refused" in said
                assert "prot: unknown setting; did you mean port?" in said
                assert "ping_interval" in said
                assert [await publish("new-key"), await publish("third-key")] == [200, 401]

                text = CONFIG.format(key="new-key", level="debug", head_limit=16_384)
                said = await reload(text)
                assert said.endswith("applied=['log_level'] needs_restart=[]")
                assert "-key" not in said
                assert [await subscriber.get_message() for _ in range(3)] == ["1", "1", "1"]
        assert await server.end() == 0


GONE = {
    "namespace": {"namespaces": {}},
    "pattern": {"namespaces": {"chat": {"channel_regex": "never"}}},
    "length": {"channel_name_limit": 3},
}
"""What a reload can do to the name `chat:1`."""

narrowed = pytest.mark.parametrize("gone", GONE.values(), ids=list(GONE))


def options(**more: Any) -> NodeOptions:
    settings = load_settings(
        user_personal_channel=True,
        token={"hmac_secret_key": SECRET},
        **{"namespaces": {"chat": CHAT}, **more},
    )
    return msgspec.structs.replace(settings.node_options(), ping_interval=1_000_000)


CHAT = {
    "presence": True,
    "join_leave": True,
    "force_push_join_leave": True,
    "force_recovery": True,
    "allow_publish_for_subscriber": True,
}


@narrowed
async def test_subscriptions_expire_after_a_reload(
    gone: dict[str, Any], autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing is asked of a name that is gone: each ends at its time, alone, and is told."""
    verifier = FakeVerifier({"t": ConnectionGrant("ann")})
    async with open_node(options(), verifier=verifier) as node:
        at = int(node.unix_time()) + 60
        grant = SubscriptionGrant(expire_at=at)
        verifier.subscriptions["s"] = SubscriptionClaims("ann", "chat:1", grant=grant)
        async with talking(node, connected=False, ends=False) as talk:
            await talk.connect("t")
            await talk.subscribe("chat:1", token="s")
            await talk.news()
            node.reload(options(**gone))
            await trio.sleep(100)
            ended = {"code": 2501, "reason": "subscription expired"}
            assert await talk.pushes("unsubscribe") == [ended]
            assert (await talk.ask(presence={"channel": "chat:1"}))["error"]["code"] in (102, 107)


@narrowed
async def test_subscriptions_are_used_after_a_reload(
    gone: dict[str, Any], autojump_clock: trio.testing.MockClock
) -> None:
    """They are refreshed, hear, are listed, and are left by client and server, as before."""
    verifier = FakeVerifier({"t": ConnectionGrant("ann")})
    async with open_node(options(), verifier=verifier) as node:
        at = int(node.unix_time()) + 60
        grant = SubscriptionGrant(expire_at=at)
        later = SubscriptionGrant(expire_at=at + 1_000, info=b"1")
        verifier.subscriptions["s"] = SubscriptionClaims("ann", "chat:1", grant=grant)
        verifier.subscriptions["later"] = SubscriptionClaims("ann", "chat:1", grant=later)
        verifier.connections["new"] = ConnectionGrant("ann", info=b"2", expire_at=at)
        async with (
            talking(node, connected=False, ends=False) as talk,
            talking(node, connected=False, ends=False) as other,
        ):
            for one in (talk, other):
                await one.connect("t")
                await one.subscribe("chat:1", token="s")
            node.reload(options(**gone))
            await talk.news()
            reply = await talk.ask(sub_refresh={"channel": "chat:1", "token": "later"})
            assert reply["sub_refresh"]["expires"] is True
            assert (await talk.ask(refresh={"token": "new"}))["refresh"]["expires"] is True
            await node.refresh("ann", expire_at=at + 2_000, info=b"3")
            shown = (await members(node, "chat:1"))[talk.client.id]
            assert (bytes(shown.conn_info or b""), bytes(shown.chan_info or b"")) == (b"3", b"1")
            await trio.sleep(500)
            assert "chat:1" in talk.client.channels
            assert "error" in await talk.ask(publish={"channel": "chat:1", "data": 1})
            assert await talk.ask(unsubscribe={"channel": "chat:1"}) == {
                "id": talk.ids,
                "unsubscribe": {},
            }
            await wait_all_tasks_blocked()
            assert not await members(node, "chat:1")


@narrowed
async def test_the_server_api_after_a_reload(gone: dict[str, Any]) -> None:
    """It ends a subscription whose name is gone; a name that nobody hears is an error as ever."""
    verifier = FakeVerifier({"t": ConnectionGrant("ann", channels={"chat:1": SubscriptionGrant()})})
    async with (
        open_node(options(), verifier=verifier) as node,
        talking(node, connected=False, ends=False) as talk,
    ):
        await talk.connect("t")
        node.reload(options(**gone))
        await node.unsubscribe("ann", "chat:1")
        assert "chat:1" not in talk.client.channels
        with pytest.raises(ReplyError, match=r"102|107"):
            await node.unsubscribe("ann", "chat:1")
        with pytest.raises(ReplyError, match=r"102|107"):
            await node.subscribe("ann", "chat:1")


@narrowed
@pytest.mark.parametrize("when", ["reading", "before"])
async def test_going_live_after_a_reload(
    gone: dict[str, Any], when: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Who joins while the name goes is answered; who comes back is answered without it."""
    broker = TestBroker()
    granted = {"chat:1": SubscriptionGrant(), "a": SubscriptionGrant()}
    verifier = FakeVerifier({"t": ConnectionGrant("ann", channels=granted)})
    async with (
        open_node(options(), verifier=verifier, broker=broker) as node,
        talking(node, connected=False, ends=False) as talk,
        trio.open_nursery() as nursery,
    ):
        if when == "before":
            node.reload(options(**gone))
            subs = (await talk.connect("t", subs={"chat:1": {"recover": True}}))["subs"]
            assert set(subs) == ({"a"} if "channel_name_limit" in gone else {"#ann", "a"})
            return
        broker.before["chat:1"].shut()
        nursery.start_soon(talk.connect, "t")
        await wait_all_tasks_blocked()
        node.reload(options(**gone))
        broker.before["chat:1"].open()
        await wait_all_tasks_blocked()
        reply, *_joins = await talk.news()
        assert "chat:1" in reply["connect"]["subs"]


async def test_renewals_by_the_back_end_after_a_reload(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What was granted is kept: the back end goes on renewing a subscription that it renewed."""
    application = Application()
    asked = ChannelOptions(subscribe_proxy_enabled=True, sub_refresh_proxy_enabled=True)
    first = NodeOptions(namespaces={"chat": asked}, ping_interval=1_000_000)
    async with open_asking_node(application, first) as node:
        at = int(node.unix_time()) + 60
        application.answers["connect"] = {"result": {"user": "ann"}}
        application.answers["subscribe"] = {"result": {"expire_at": at}}
        application.answers["sub_refresh"] = {"result": {"expire_at": at + 1_000}}
        async with talking(node, ends=False) as talk:
            await talk.subscribe("chat:1")
            node.reload(NodeOptions(ping_interval=1_000_000))
            await trio.sleep(70)
            assert len(application.asked("sub_refresh")) == 1
            assert talk.client.channels["chat:1"].expire_at == at + 1_000
            application.answers["sub_refresh"] = {"result": {"expired": True}}
            await trio.sleep(1_000)
            assert not talk.client.channels


@starts_processes
@pytest.mark.parametrize("first", ["native", "asgi"])
async def test_a_signal_that_removes_a_namespace(tmp_path: Path, first: str) -> None:
    """A subscription in it expires, is told, and the process and the connection live on."""
    file = trio.Path(tmp_path / "repeater.toml")
    common = f'expired_close_delay = 0\n[token]\nhmac_secret_key = "{SECRET}"\n'
    await file.write_text(f"{common}[namespaces.chat]\n")
    async with serving("--config", str(file)) as server:
        port = await server.port()
        with trio.fail_after(LOOP_ANSWERS):
            async with open_socket(port, first) as socket:
                expiring = sign({"sub": "a", "channel": "chat:1", "exp": int(time.time()) + 3})
                await socket.send_message(dumps(1, connect={"token": sign({"sub": "a"})}))
                assert "connect" in json.loads(await socket.get_message())
                subscribe = {"channel": "chat:1", "token": expiring}
                await socket.send_message(dumps(2, subscribe=subscribe))
                assert json.loads(await socket.get_message())["subscribe"]["expires"] is True
                await file.write_text(common)
                server.process.send_signal(signal.SIGHUP)
                assert "namespaces.chat" in await server.line("configuration")
                ended = json.loads(await socket.get_message())["push"]
                assert ended["unsubscribe"]["code"] == 2501
                await socket.send_message(dumps(3, subscribe={"channel": "chat:1"}))
                assert json.loads(await socket.get_message())["error"]["code"] == 102


def dumps(number: int, **command: Any) -> str:
    return json.dumps({"id": number, **command})


@asynccontextmanager
async def open_socket(port: int, way: str) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    """A Centrifugo client's WebSocket: the first request of its connection, or a later one."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        if way == "asgi":
            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
            received = b""
            while b"\r\n\r\n" not in received:
                received += await stream.receive_some()
            head, _, body = received.partition(b"\r\n\r\n")
            length = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
            while len(body) < length:
                body += await stream.receive_some()
        async with trio.open_nursery() as nursery:
            socket = await trio_websocket.wrap_client_stream(
                nursery, stream, "test", "/connection/websocket"
            )
            yield socket
            nursery.cancel_scope.cancel()
