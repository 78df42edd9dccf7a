"""A personal channel is its user's alone, whatever the other settings and other tokens say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.channel_rules import ChannelRules
from repeater.access.grants import ConnectionGrant, SubscriptionClaims, SubscriptionGrant
from repeater.clients.unidirectional import UnidirectionalSession
from repeater.errors import ReplyError
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_UNI_ASGI
from repeater.publication import Publication
from repeater.testing import MemoryTransport, connect
from tests.application import Application, open_asking_node
from tests.conversation import FakeVerifier, talking

OPEN_TO_ALL = ChannelOptions(
    allow_subscribe_for_client=True,
    allow_subscribe_for_anonymous=True,
    allow_history_for_client=True,
    allow_history_for_anonymous=True,
    allow_presence_for_client=True,
    allow_presence_for_anonymous=True,
    presence=True,
)
LISTS = ChannelOptions(allow_user_limited_channels=True)

IDS = ["victim", "a#b", "smith,john", "a:b", "#", ","]
"""Ids that a name can hold; the parts of some are other users' ids."""
STRANGERS = ["", "mallory", "b", "john", "smith", "a", "victim2", "victi", "VICTIM"]
UNNAMEABLE = ["\u00e9va", "a\nb", "a\x00b", "x" * 255, "\u202e", "\ud83d\ude00"]

with_and_without_namespace = pytest.mark.parametrize("namespace", ["", "me"])
whatever_is_set = pytest.mark.parametrize(
    "more",
    [
        {"channel": OPEN_TO_ALL},
        {"channel": LISTS},
        {"channel": OPEN_TO_ALL, "insecure": True, "allow_anonymous": True},
        {"channel": ChannelOptions(subscribe_proxy_enabled=True)},
    ],
    ids=["open", "lists", "insecure", "asked"],
)


def options_of(namespace: str = "", **more: Any) -> NodeOptions:
    """Personal channels, whose namespace has the same options as the channels without one."""
    channel = more.setdefault("channel", ChannelOptions())
    return NodeOptions(
        user_personal_channel=True,
        personal_channel_namespace=namespace,
        namespaces={"me": channel, "other": channel},
        **more,
    )


def name_of(user: str, namespace: str = "") -> str:
    return f"{namespace}:#{user}" if namespace else f"#{user}"


@asynccontextmanager
async def open_to(user: str, options: NodeOptions, **tokens: Any) -> AsyncIterator[Node]:
    """A node whose token `t` is this user's."""
    verifier = FakeVerifier({"t": ConnectionGrant(user)}, tokens)
    async with open_node(options, verifier=verifier) as node:
        yield node


@with_and_without_namespace
@whatever_is_set
@pytest.mark.parametrize("user", IDS)
def test_the_name_decides(namespace: str, more: dict[str, Any], user: str) -> None:
    """The whole id is compared: a part of it is another user."""
    rules = ChannelRules(options_of(namespace, **more))
    name = name_of(user, namespace)
    if user in ("a:b",) and not namespace:
        with pytest.raises(ReplyError, match="102"):  # before the colon is a namespace: `#a`
            rules.may_subscribe(name, user)
        return
    assert rules.personal_channel(user) == name
    assert rules.may_subscribe(name, user)
    assert not any(rules.may_subscribe(name, one) for one in STRANGERS)
    assert rules.grantable(name, user)
    assert not any(rules.grantable(name, one) for one in STRANGERS)


def test_lists_of_users_are_as_they_were() -> None:
    """Names in which something stands before the `#`, and servers without personal channels."""
    rules = ChannelRules(options_of("me", channel=LISTS))
    for name in ("other:x#42,43", "#42,43", "other:#42"):
        assert rules.may_subscribe(name, "42")
        assert not rules.may_subscribe(name, "44")
    assert ChannelRules(NodeOptions(channel=LISTS)).may_subscribe("#42,43", "43")


@with_and_without_namespace
@whatever_is_set
async def test_strangers_subscribe(namespace: str, more: dict[str, Any]) -> None:
    """103 for one that asks, and one that names it in `connect` does not hear it."""
    options, name = options_of(namespace, **more), name_of("victim", namespace)
    async with (
        open_to("mallory", options) as node,
        talking(node, connected=False, ends=False) as talk,
    ):
        result = await talk.connect("t", subs={name: {}})
        assert list(result["subs"]) == [name_of("mallory", namespace)]
        assert (await talk.subscribe(name))["code"] == 103
        assert (await talk.subscribe(name_of("mallory,victim", namespace)))["code"] == 103
        await node.publish(Publication(name, b"1"))
        assert await talk.data() == []


async def test_strangers_read_history_and_presence() -> None:
    """Who may not hear a personal channel may not read it either; its user may."""
    options = options_of(channel=OPEN_TO_ALL)
    async with open_to("victim", options) as node, talking(node, connected=False) as victim:
        await victim.connect("t")
        await node.publish(Publication("#victim", b"1"))
        asked: list[dict[str, Any]] = [
            {"history": {"channel": "#victim", "limit": 10}},
            {"presence": {"channel": "#victim"}},
            {"presence_stats": {"channel": "#victim"}},
        ]
        for one in asked:
            assert "error" not in await victim.ask(**one)
        node.verifier = FakeVerifier({"t": ConnectionGrant("mallory")})
        async with talking(node, connected=False) as mallory:
            await mallory.connect("t")
            for one in asked:
                assert (await mallory.ask(**one))["error"]["code"] == 103


@pytest.mark.parametrize("grants", ["channels", "subscription"])
async def test_tokens_of_others(grants: str) -> None:
    """A token of another user does not open it; what else the token grants is heard."""
    granted = {"#victim": SubscriptionGrant(), "news": SubscriptionGrant()}
    verifier = FakeVerifier(
        {"t": ConnectionGrant("mallory", channels=granted if grants == "channels" else {})},
        {"s": SubscriptionClaims("mallory", "#victim")},
    )
    async with (
        open_node(options_of(), verifier=verifier) as node,
        talking(node, connected=False, ends=False) as talk,
    ):
        subs = set((await talk.connect("t"))["subs"])
        assert subs == {"#mallory", *(["news"] if grants == "channels" else [])}
        assert (await talk.subscribe("#victim", token="s"))["code"] == 103


async def test_the_server_api_may() -> None:
    """A back end can let another user listen, and that user can read what it hears."""
    reading = ChannelOptions(allow_history_for_subscriber=True)
    async with (
        open_to("support", options_of(channel=reading)) as node,
        talking(node, connected=False) as talk,
    ):
        await talk.connect("t")
        await node.subscribe("support", "#victim")
        await node.publish(Publication("#victim", b"1"))
        assert 1 in await talk.data()
        history = await talk.ask(history={"channel": "#victim", "limit": 10})
        assert [one["data"] for one in history["history"]["publications"]] == [1]


async def test_the_back_end_is_not_asked() -> None:
    """Neither its answer to `subscribe` nor its answer to `connect` opens it to others."""
    application = Application()
    application.answers["connect"] = {
        "result": {"user": "mallory", "channels": ["#victim", "no:such", "news"]}
    }
    options = options_of(channel=ChannelOptions(subscribe_proxy_enabled=True))
    async with (
        open_asking_node(application, options) as node,
        talking(node, connected=False, ends=False) as talk,
    ):
        assert set((await talk.connect())["subs"]) == {"#mallory", "news"}
        assert (await talk.subscribe("#victim"))["code"] == 103
        assert not application.asked("subscribe")


@pytest.mark.parametrize("user", UNNAMEABLE)
@pytest.mark.parametrize("way", ["centrifugo", "unidirectional"])
async def test_ids_that_no_name_can_hold(
    user: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The user connects without a personal channel, and one line of log says so."""
    async with open_to(user, options_of()) as node:
        if way == "centrifugo":
            async with talking(node, connected=False, ends=False) as talk:
                result = await talk.connect("t")
        else:
            transport = MemoryTransport(CENTRIFUGE_UNI_ASGI)
            async with connect(node, transport, ready=False) as client:
                await UnidirectionalSession(node, client).receive('{"token":"t"}')
                (result,) = (json.loads(chunk)["connect"] for chunk in transport.sent)
        assert "subs" not in result
        assert caplog.text.count("a channel was left out of a connect") == 1


async def test_a_full_connection_has_no_personal_channel() -> None:
    """The server's own choice does not take a user above the limit of channels."""
    granted = {"a": SubscriptionGrant(), "b": SubscriptionGrant()}
    verifier = FakeVerifier({"t": ConnectionGrant("ann", channels=granted)})
    options = NodeOptions(user_personal_channel=True, channel_limit=2)
    async with (
        open_node(options, verifier=verifier) as node,
        talking(node, connected=False, ends=False) as talk,
    ):
        assert set((await talk.connect("t"))["subs"]) == {"a", "b"}


async def test_the_log_has_a_bound(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A reconnect storm of such users writes a few lines, and one with the number of the rest."""
    async with open_to("\u00e9va", options_of()) as node:
        for _ in range(50):
            async with talking(node, connected=False) as talk:
                await talk.connect("t")
        await wait_all_tasks_blocked()
    lines = [one for one in caplog.messages if "left out of a connect" in one]
    assert len(lines) == 21
    assert "times=30" in lines[-1]
