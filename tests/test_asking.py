"""Publish, presence and history: whether the channel has it, and who may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from repeater.access.grants import ConnectionGrant, SubscriptionClaims, SubscriptionGrant
from repeater.brokers.contract import Outcome
from repeater.brokers.receipts import Answer
from repeater.errors import BAD_REQUEST, BrokerError
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import Publication
from repeater.testing import open_test_node
from tests.brokers import TestBroker
from tests.conversation import FakeVerifier, Talk, talking
from tests.engines import FailingPresence
from tests.refusing import usual, usual_error


@asynccontextmanager
async def history_of(count: int, **options: Any) -> AsyncIterator[tuple[Node, Talk, str]]:
    """A client on a node with so many publications in channel c."""
    async with open_test_node(NodeOptions(**options)) as node, talking(node) as talk:
        epoch = ""
        for number in range(1, count + 1):
            position = await node.publish(Publication("c", b"%d" % number))
            assert position is not None
            epoch = position.epoch
        yield node, talk, epoch


async def history(talk: Talk, **request: Any) -> Any:
    reply = await talk.ask(history={"channel": "c", **request})
    return reply.get("history", reply.get("error"))


class TestHistory:
    """Section 4.6."""

    @pytest.mark.parametrize(
        ("request_", "expected"),
        [
            ({}, []),
            ({"limit": 0}, []),
            ({"limit": 2}, [1, 2]),
            ({"limit": -1}, [1, 2, 3, 4]),
            ({"limit": 99}, [1, 2, 3, 4]),
            ({"limit": 2, "reverse": True}, [5, 4]),
            ({"limit": 10, "since": {"offset": 3}}, [4, 5]),
            ({"limit": 1, "since": {"offset": 3}}, [4]),
            ({"limit": 10, "since": {"offset": 3}, "reverse": True}, [2, 1]),
            ({"limit": 1, "since": {"offset": 3}, "reverse": True}, [2]),
            ({"limit": 10, "since": {"offset": 5}}, []),
            ({"limit": 10, "since": {"offset": 99}}, []),
            ({"limit": 10, "since": {"offset": 1}, "reverse": True}, []),
            ({"limit": 10, "since": {}}, [1, 2, 3, 4]),
        ],
    )
    async def test_selection(self, request_: dict[str, Any], expected: list[int]) -> None:
        """Limit, since and reverse; at most as many as a client may have. The top is told."""
        async with history_of(5, history_limit=4) as (_, talk, epoch):
            result = await history(talk, **request_)
            assert [one["offset"] for one in result["publications"]] == expected
            assert [one["data"] for one in result["publications"]] == expected
            assert (result["offset"], result["epoch"]) == (5, epoch)

    async def test_of_an_unseen_channel(self) -> None:
        """Offset 0, an epoch and an empty list, none of them left out."""
        async with history_of(0) as (_, talk, _):
            result = await history(talk, limit=10)
            assert result.pop("epoch")
            assert result == {"publications": [], "offset": 0}

    async def test_epoch(self) -> None:
        """Since another epoch is error 112; since the stream's own, or any, is served."""
        async with history_of(2) as (_, talk, epoch):
            for known, served in ((epoch, True), ("", True), ("other", False)):
                result = await history(talk, limit=10, since={"offset": 1, "epoch": known})
                if served:
                    assert [one["offset"] for one in result["publications"]] == [2]
                else:
                    assert usual_error(result) == {"code": 112, "message": "unrecoverable position"}

    async def test_reverse_since_nothing(self) -> None:
        """Backwards from before the first publication is error 107."""
        async with history_of(2) as (_, talk, _):
            result = await history(talk, limit=1, since={"offset": 0}, reverse=True)
            assert result["code"] == 107

    async def test_where_there_is_none(self) -> None:
        """A channel without history answers 108, an unknown namespace 102."""
        async with history_of(0, channel=ChannelOptions(history_size=0)) as (_, talk, _):
            assert (await history(talk, limit=1))["code"] == 108
            assert (await history(talk, channel="no:c"))["code"] == 102

    async def test_contents(self) -> None:
        """Data on one line, tags and who published; the SDKs find them in these places."""
        async with history_of(0) as (node, talk, _):
            await node.publish(Publication("c", b'{\n"a": 1}', tags={"k": "v"}))
            await talk.ask(publish={"channel": "c", "data": None})
            first, second = (await history(talk, limit=10))["publications"]
            assert first == {"data": {"a": 1}, "offset": 1, "tags": {"k": "v"}}
            assert second["info"] == {"user": "", "client": talk.client.id}
            assert b"\n" not in talk.transport.sent[-1]

    async def test_failing_back_end(self) -> None:
        """A history that can't be read is error 100, temporary."""
        broker = TestBroker()
        async with open_test_node(broker=broker) as node, talking(node) as talk:
            broker.failing = True
            error = await history(talk, limit=1)
            assert (error["code"], error["temporary"]) == (100, True)


class TestPublish:
    """Section 4.3."""

    @pytest.mark.parametrize(
        ("request_", "code"),
        [
            ({"channel": "c", "data": 1, "type": 1}, 108),
            ({"channel": "c"}, 107),
            ({"channel": "no:c", "data": 1}, 102),
            ({"channel": "objects:c", "data": [1]}, 107),
            ({"channel": "objects:c", "data": {"a": 1}}, None),
            ({"channel": "c", "data": None}, None),
            ({"channel": "c", "data": False}, None),
        ],
    )
    async def test_errors(self, request_: dict[str, Any], code: int | None) -> None:
        """Map publications 108, empty data or a wrong format 107, unknown namespaces 102."""
        objects = ChannelOptions(publication_data_format="json_object")
        options = NodeOptions(namespaces={"objects": objects})
        async with open_test_node(options) as node, talking(node) as talk:
            reply = await talk.ask(publish=request_)
            assert reply.get("error", {}).get("code") == code
            assert ("publish" in reply) is (code is None)

    async def test_without_channel(self) -> None:
        """No channel ends the connection with 3501."""
        async with open_test_node() as node:
            async with talking(node) as talk:
                await talk.ask(publish={"data": 1})
            assert usual(talk.transport.closed_with) == BAD_REQUEST

    async def test_failing_back_end(self) -> None:
        """What could not be published is error 100, temporary."""

        class Failing(TestBroker):
            def submit(self, *parts: Any, **options: Any) -> Answer[Outcome]:
                raise BrokerError("publishing is down")

        async with open_test_node(broker=Failing()) as node, talking(node) as talk:
            reply = await talk.ask(publish={"channel": "c", "data": 1})
            assert (reply["error"]["code"], reply["error"]["temporary"]) == (100, True)

    async def test_info(self) -> None:
        """Who published goes with it: the connection's info, and the subscription's if any."""
        claims = SubscriptionClaims("ann", "c", grant=SubscriptionGrant(info=b'"seat 1"'))
        verifier = FakeVerifier(
            {"t": ConnectionGrant("ann", info=b'{"n":"Ann"}')}, {"seat": claims}
        )
        async with (
            open_test_node(verifier=verifier) as node,
            talking(node, connected=False) as talk,
            talking(node) as other,
        ):
            await talk.connect("t")
            await other.subscribe()
            await other.news()
            await talk.ask(publish={"channel": "c", "data": 1})
            await talk.subscribe(token="seat")
            await talk.ask(publish={"channel": "c", "data": 2})
            infos = [pub["info"] for pub in await other.pushes("pub")]
            who = {"user": "ann", "client": talk.client.id, "conn_info": {"n": "Ann"}}
            assert infos == [who, {**who, "chan_info": "seat 1"}]


_ASK: dict[str, dict[str, Any]] = {
    "publish": {"publish": {"channel": "c", "data": 1}},
    "presence": {"presence_stats": {"channel": "c"}},
    "history": {"history": {"channel": "c"}},
}


@pytest.mark.parametrize("action", _ASK)
@pytest.mark.parametrize(
    ("allowed", "who"),
    [
        (set(), set()),
        ({"client"}, {"ann", "subscribed ann"}),
        ({"anonymous"}, set()),
        ({"client", "anonymous"}, {"ann", "subscribed ann", "nobody", "subscribed nobody"}),
        ({"subscriber"}, {"subscribed ann"}),
        ({"subscriber", "anonymous"}, {"subscribed ann", "subscribed nobody"}),
        ({"client", "subscriber"}, {"ann", "subscribed ann"}),
    ],
)
async def test_permissions(action: str, allowed: set[str], who: set[str]) -> None:
    """Who may, of signed-in, anonymous and subscribed clients; everybody else gets 103."""
    channel = ChannelOptions(
        presence=True, allow_subscribe_for_client=True, allow_subscribe_for_anonymous=True
    )
    permissions: dict[str, Any] = {f"allow_{action}_for_{one}": True for one in allowed}
    channel = msgspec.structs.replace(channel, **permissions)
    options = NodeOptions(allow_anonymous=True, channel=channel)
    verifier = FakeVerifier({"t": ConnectionGrant("ann")})
    may = set()
    async with open_node(options, verifier=verifier) as node:
        for user, token in (("ann", "t"), ("nobody", "")):
            for subscribed in (False, True):
                async with talking(node, connected=False) as talk:
                    await talk.connect(token)
                    if subscribed:
                        await talk.subscribe()
                    reply = await talk.ask(**_ASK[action])
                    if "error" not in reply:
                        may.add(("subscribed " if subscribed else "") + user)
                    else:
                        assert reply["error"]["code"] == 103
    assert may == who


async def test_presence_of_a_failing_store() -> None:
    """Presence that cannot be read is error 100, temporary."""
    options = NodeOptions(insecure=True, channel=ChannelOptions(presence=True))
    async with open_node(options, presence=FailingPresence()) as node, talking(node) as talk:
        for command in ("presence", "presence_stats"):
            error = (await talk.ask(**{command: {"channel": "c"}}))["error"]
            assert (error["code"], error["temporary"]) == (100, True)


async def test_presence_where_there_is_none() -> None:
    """A channel that keeps no presence answers 108 before it asks who may."""
    options = NodeOptions(allow_anonymous=True)
    async with open_node(options) as node, talking(node) as talk:
        for command in ("presence", "presence_stats"):
            assert (await talk.ask(**{command: {"channel": "c"}}))["error"]["code"] == 108
