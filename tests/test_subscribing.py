"""Subscribe: permission, features, recovery, deltas, filters, tokens and their expiry."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
import trio
from centrifuge.fossil import apply_delta
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import (
    ConnectionGrant,
    Overrides,
    SubscriptionClaims,
    SubscriptionGrant,
    TokenExpiredError,
    TokenInvalidError,
)
from repeater.clients.commands import subscribe as subscribing
from repeater.errors import (
    BAD_REQUEST,
    INVALID_TOKEN,
    SERVER_ERROR,
    SUBSCRIPTION_EXPIRED,
    BrokerError,
)
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.filters import TagsFilter
from repeater.publication import Publication, StreamPosition, weight_of
from repeater.testing import UnixClock, open_test_node
from tests.brokers import TestBroker
from tests.conversation import FakeVerifier, members, talking
from tests.engines import FailingPresence
from tests.refusing import usual, usual_error

CACHE = ChannelOptions(history_size=10, history_ttl=60, force_recovery_mode="cache")
DELTA = ChannelOptions(allowed_delta_types=frozenset({"fossil"}))


async def publish(node: Node, *numbers: int, channel: str = "c") -> StreamPosition:
    position = None
    for number in numbers:
        position = await node.publish(Publication(channel, b"%d" % number))
    assert position is not None
    return position


def told(result: dict[str, Any]) -> list[Any]:
    """The data of the recovered publications."""
    return [one["data"] for one in result.get("publications", [])]


async def test_reply_comes_first_while_history_is_held() -> None:
    """What is published while history is read comes behind the reply, once and in order."""
    broker = TestBroker()
    async with (
        open_test_node(broker=broker) as node,
        talking(node) as talk,
        trio.open_nursery() as nursery,
    ):
        await publish(node, 1, 2)
        broker.after["c"].shut()
        command = talk.command(subscribe={"channel": "c", "recoverable": True, "recover": True})
        nursery.start_soon(talk.session.receive, command)
        await wait_all_tasks_blocked()
        await publish(node, 3)
        await node.publish(Publication("c", b"4"), skip_history=True)
        assert await talk.news() == []
        broker.after["c"].open()
        reply, *pushes = await talk.news()
        await publish(node, 5)
        pushes += await talk.news()
        assert told(reply["subscribe"]) == [1, 2, 3]
        assert reply["subscribe"]["recovered"] is True
        assert [push["push"]["pub"]["data"] for push in pushes] == [4, 5]


async def test_fresh_position_moves_up_to_what_gathered() -> None:
    """Without recovery what gathered is not told, and the position is behind it."""
    broker = TestBroker()
    async with (
        open_test_node(broker=broker) as node,
        talking(node) as talk,
        trio.open_nursery() as nursery,
    ):
        await publish(node, 1)
        broker.after["c"].shut()
        command = talk.command(subscribe={"channel": "c", "positioned": True})
        nursery.start_soon(talk.session.receive, command)
        await wait_all_tasks_blocked()
        await publish(node, 2, 3)
        await wait_all_tasks_blocked()
        broker.after["c"].open()
        (reply,) = await talk.news()
        assert reply["subscribe"]["offset"] == 3
        await publish(node, 4)
        assert await talk.data() == [4]


async def test_recovered_reply_has_the_requests_offset() -> None:
    """Recovered: the request's offset and everything after it. With nothing missed: none."""
    async with open_test_node() as node, talking(node) as talk:
        top = await publish(node, 1, 2, 3)
        result = await talk.subscribe(
            recoverable=True, recover=True, offset=1, epoch=top.epoch, positioned=True
        )
        assert told(result) == [2, 3]
        assert (result["offset"], result["epoch"]) == (1, top.epoch)
        assert result["was_recovering"] is True
        await talk.ask(unsubscribe={"channel": "c"})
        again = await talk.subscribe(recoverable=True, recover=True, offset=3, epoch=top.epoch)
        assert again["recovered"] is True
        assert again["offset"] == 3
        assert "publications" not in again


@pytest.mark.parametrize(
    ("offset", "epoch"), [(0, "other"), (9, None), (2, None), (3, "other"), (2**64 - 1, None)]
)
async def test_not_recovered_is_told_with_the_top(offset: int, epoch: str | None) -> None:
    """Another epoch, a position past the top, or too much missed: the top, and none of it."""
    options = NodeOptions(channel=ChannelOptions(history_size=2))
    async with open_test_node(options) as node, talking(node) as talk:
        top = await publish(node, 1, 2, 3, 4, 5)
        result = await talk.subscribe(
            recoverable=True, recover=True, offset=offset, epoch=epoch or top.epoch
        )
        assert result == {
            "recoverable": True,
            "positioned": True,
            "epoch": top.epoch,
            "offset": 5,
            "was_recovering": True,
        }


async def test_recovery_limit() -> None:
    """Who missed more than the limit is not recovered; who missed as much is."""
    async with open_test_node(NodeOptions(recovery_limit=3)) as node:
        top = await publish(node, 1, 2, 3, 4)
        for offset, recovered in ((0, False), (1, True)):
            async with talking(node) as talk:
                result = await talk.subscribe(
                    recoverable=True, recover=True, offset=offset, epoch=top.epoch
                )
                assert result.get("recovered", False) is recovered


async def test_flag_two_wants_an_error() -> None:
    """With bit 2 of the flag what can't be recovered is error 112, and no subscription."""
    async with open_test_node() as node, talking(node) as talk:
        await publish(node, 1)
        error = await talk.subscribe(
            recoverable=True, recover=True, offset=1, epoch="other", flag=3
        )
        assert error["code"] == 112
        assert error["message"].startswith("unrecoverable position: the stream has begun anew")
        assert not node.hub.channels
        assert "epoch" in await talk.subscribe(recoverable=True, flag=3)


async def test_recovery_of_a_long_history_while_publishing_goes_on() -> None:
    """100,000 publications arrive once and in order, and then those published meanwhile."""
    count = 100_000
    options = NodeOptions(
        recovery_limit=count + 100,
        outbox_limit=count * 1_000,
        channel=ChannelOptions(history_size=count + 100),
    )
    broker = TestBroker()
    async with (
        open_test_node(options, broker=broker) as node,
        talking(node) as talk,
        trio.open_nursery() as nursery,
    ):
        channel = node.channels.options("c")
        for number in range(1, count + 1):
            # Without fan-out, which has its own tests.
            streams = broker.memory._streams
            one = Publication("c", b"%d" % number)
            now = trio.current_time()
            known = streams.find("c", now)
            numbered = streams.append(known, one, channel, weight_of(one), now)
        broker.after["c"].shut()
        command = talk.command(
            subscribe={
                "channel": "c",
                "recoverable": True,
                "recover": True,
                "epoch": numbered.epoch,
            }
        )
        nursery.start_soon(talk.session.receive, command)
        await wait_all_tasks_blocked()
        await publish(node, *range(count + 1, count + 50))
        await wait_all_tasks_blocked()
        broker.after["c"].open()
        await publish(node, *range(count + 50, count + 100))
        reply, *pushes = await talk.news()
        heard = told(reply["subscribe"]) + [push["push"]["pub"]["data"] for push in pushes]
        assert heard == list(range(1, count + 100))


async def test_failing_history_is_no_answer() -> None:
    """Where history can't be read the client is asked to try again, 100, and stays connected."""
    broker = TestBroker()
    async with open_test_node(broker=broker) as node, talking(node, ends=False) as talk:
        broker.failing = True
        assert "recoverable" not in (await talk.subscribe("a"))
        error = await talk.subscribe("c", positioned=True)
        assert usual_error(error) == {
            "code": 100,
            "message": "internal server error",
            "temporary": True,
        }
        assert set(node.hub.channels) == {"a"}
        broker.failing = False
        assert (await talk.subscribe("c", positioned=True))["positioned"]


async def test_failing_presence_is_no_answer() -> None:
    """Where presence can't be kept the client is asked to try again, 100, and stays connected."""
    options = NodeOptions(insecure=True, channel=ChannelOptions(presence=True))
    async with (
        open_node(options, presence=FailingPresence()) as node,
        talking(node, ends=False) as talk,
    ):
        error = await talk.subscribe()
        assert (error["code"], error["temporary"]) == (100, True)
        assert not node.hub.channels


async def test_cut_while_history_is_held() -> None:
    """A client that is cut while it joins leaves nothing behind, though history answers then."""
    broker = TestBroker()
    options = NodeOptions(channel=ChannelOptions(presence=True))
    async with open_test_node(options, broker=broker) as node, trio.open_nursery() as nursery:
        broker.after["c"].shut()

        async def live() -> None:
            async with talking(node) as talk:
                await talk.subscribe(positioned=True)

        nursery.start_soon(live)
        await wait_all_tasks_blocked()
        (client,) = node.registry.clients
        # In one turn: the answer and the end.
        broker.after["c"].open()
        client.cut(SERVER_ERROR)
        await wait_all_tasks_blocked()
        assert not node.hub.channels
        assert not await members(node)


class TestFeatures:
    """What is granted of what is asked for."""

    @pytest.mark.parametrize(
        ("channel", "granted"),
        [
            (ChannelOptions(), set()),
            (ChannelOptions(allow_positioning=True), {"positioned"}),
            (ChannelOptions(allow_recovery=True), {"positioned", "recoverable"}),
            (
                ChannelOptions(allow_history_for_subscriber=True, allow_history_for_anonymous=True),
                {"positioned", "recoverable"},
            ),
            (ChannelOptions(allow_history_for_subscriber=True), set()),  # not the anonymous
            (ChannelOptions(allow_recovery=True, history_size=0), set()),
        ],
    )
    async def test_asked_for(self, channel: ChannelOptions, granted: set[str]) -> None:
        """Positions and recovery by the channel's options or the permission to read history."""
        channel = msgspec.structs.replace(
            channel, allow_subscribe_for_client=True, allow_subscribe_for_anonymous=True
        )
        options = NodeOptions(allow_anonymous=True, channel=channel)
        async with open_node(options) as node, talking(node) as talk:
            result = await talk.subscribe(positioned=True, recoverable=True)
            assert {key for key in result if key in ("positioned", "recoverable")} == granted

    @pytest.mark.parametrize(
        ("channel", "granted"),
        [
            (ChannelOptions(force_positioning=True), {"positioned"}),
            (ChannelOptions(force_recovery=True), {"positioned", "recoverable"}),
            (ChannelOptions(force_recovery=True, history_size=0), set()),
        ],
    )
    async def test_forced(self, channel: ChannelOptions, granted: set[str]) -> None:
        """What is forced is granted unasked."""
        async with open_test_node(NodeOptions(channel=channel)) as node, talking(node) as talk:
            result = await talk.subscribe()
            assert {key for key in result if key in ("positioned", "recoverable")} == granted

    @pytest.mark.parametrize(
        ("request_", "code"),
        [
            ({"tf": {"key": "k", "cmp": "eq", "val": "1"}}, 107),
            ({"channel": "unknown:x"}, 102),
            ({"channel": "$private"}, 103),
        ],
    )
    async def test_refused(self, request_: dict[str, Any], code: int) -> None:
        """What is not there is an error, and the connection goes on."""
        async with open_test_node() as node, talking(node) as talk:
            assert (await talk.subscribe(**{"channel": "c", **request_}))["code"] == code
            assert await talk.subscribe() == {}

    @pytest.mark.parametrize("type_", [1, 2, 3])
    async def test_other_types_are_not_offered(self, type_: int) -> None:
        """A map or a shared poll is error 108 with a message of its own; the client stays."""
        async with open_test_node() as node, talking(node) as talk:
            refusal = {"code": 108, "message": "not offered here"}
            assert usual_error(await talk.subscribe(type=type_)) == refusal
            assert await talk.subscribe() == {}

    @pytest.mark.parametrize("tf", [{"op": "x"}, {"key": "k", "cmp": "??"}, {"op": "and"}])
    async def test_bad_filter(self, tf: dict[str, Any]) -> None:
        """An invalid filter is error 107."""
        options = NodeOptions(channel=ChannelOptions(allow_tags_filter=True))
        async with open_test_node(options) as node, talking(node) as talk:
            assert (await talk.subscribe(tf=tf))["code"] == 107

    async def test_unknown_delta_breaks_the_protocol(self) -> None:
        """A kind of delta that nobody knows ends the connection."""
        async with open_test_node() as node:
            async with talking(node) as talk:
                await talk.subscribe(delta="xdelta")
            assert usual(talk.transport.closed_with) == BAD_REQUEST

    async def test_filters_of_one_connection(self) -> None:
        """They have 512 nodes together; one more is error 106, until a subscription ends."""
        options = NodeOptions(channel=ChannelOptions(allow_tags_filter=True))

        def tf(nodes: int) -> dict[str, Any]:
            leaf = {"key": "k", "cmp": "ex"}
            return {"op": "or", "nodes": [leaf] * (nodes - 1)}

        async with open_test_node(options) as node, talking(node) as talk:
            assert "code" not in await talk.subscribe("a", tf=tf(256))
            assert "code" not in await talk.subscribe("b", tf=tf(250))
            assert (await talk.subscribe("c", tf=tf(7)))["code"] == 106
            assert "code" not in await talk.subscribe("c", tf=tf(6))
            await talk.ask(unsubscribe={"channel": "c"})
            assert "code" not in await talk.subscribe("d", tf=tf(5))
            assert node.statistics().limited == {"filters": 1}
            assert len(node.hub.filters) == 3
        assert len(node.hub.filters) == 0

    async def test_different_filters_of_one_channel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Their nodes are bounded; equal filters are evaluated once and counted once."""
        monkeypatch.setattr(subscribing, "CHANNEL_NODES", 3)
        options = NodeOptions(channel=ChannelOptions(allow_tags_filter=True))
        async with open_test_node(options) as node:
            async with AsyncExitStack() as stack:
                codes = []
                for key in ("a", "b", "a", "a", "c", "d", "b"):
                    talk = await stack.enter_async_context(talking(node))
                    tf = {"key": key, "cmp": "ex"}
                    codes.append((await talk.subscribe(tf=tf)).get("code"))
                assert codes == [None, None, None, None, None, 106, None]
                assert node.hub.filters.nodes_with("c", TagsFilter(key="a", cmp="ex")) == 3
            assert len(node.hub.filters) == 0

    async def test_filter_holds_for_recovery(self) -> None:
        """Recovered publications are filtered as live ones are; the position counts all."""
        options = NodeOptions(channel=ChannelOptions(allow_tags_filter=True))
        async with open_test_node(options) as node, talking(node) as talk:
            for number in (1, 2, 3):
                tags = {"odd": str(number % 2)}
                await node.publish(Publication("c", b"%d" % number, tags=tags))
            result = await talk.subscribe(
                recoverable=True, recover=True, tf={"key": "odd", "cmp": "eq", "val": "1"}
            )
            assert told(result) == [1, 3]
            for number in (4, 5):
                tags = {"odd": str(number % 2)}
                await node.publish(Publication("c", b"%d" % number, tags=tags))
            assert await talk.data() == [5]


class TestCache:
    """Cache recovery (protocol, section 9.5)."""

    @pytest.mark.parametrize(
        ("since", "expected", "recovered"),
        [({}, [3], True), ({"offset": 1}, [3], True), ({"offset": 3}, [], True)],
    )
    async def test_newest_only(
        self, since: dict[str, int], expected: list[int], recovered: bool
    ) -> None:
        """A client that comes back gets the newest unless it has that; the offset is its own."""
        async with open_test_node(NodeOptions(channel=CACHE)) as node, talking(node) as talk:
            top = await publish(node, 1, 2, 3)
            position: dict[str, Any] = {**since, "epoch": top.epoch} if since else {}
            result = await talk.subscribe(recoverable=True, recover=True, **position)
            assert told(result) == expected
            assert result["recovered"] is recovered
            assert result.get("offset", 0) == since.get("offset", 0)
            await publish(node, 4)
            assert await talk.data() == [4]

    async def test_expired(self, autojump_clock: MockClock) -> None:
        """With the newest expired nothing is recovered."""
        options = NodeOptions(channel=CACHE, ping_interval=1e6)
        async with open_test_node(options) as node, talking(node) as talk:
            await publish(node, 1)
            await trio.sleep(61)
            result = await talk.subscribe(recoverable=True, recover=True)
            assert "recovered" not in result
            assert told(result) == []
            assert result["offset"] == 1

    @pytest.mark.parametrize("auto", [True, False])
    async def test_auto(self, auto: bool) -> None:
        """With `auto_cache_recover` a new client gets the newest too, and is told so."""
        options = NodeOptions(channel=msgspec.structs.replace(CACHE, auto_cache_recover=auto))
        async with open_test_node(options) as node, talking(node) as talk:
            await publish(node, 1, 2)
            result = await talk.subscribe(recoverable=True)
            assert told(result) == ([2] if auto else [])
            assert result.get("recovered", False) is auto
            assert result.get("was_recovering", False) is auto
            assert result.get("offset", 0) == (0 if auto else 2)

    async def test_published_meanwhile(self) -> None:
        """What is published between the newest and the reply comes behind it."""
        broker = TestBroker()
        async with (
            open_test_node(NodeOptions(channel=CACHE), broker=broker) as node,
            talking(node) as talk,
            trio.open_nursery() as nursery,
        ):
            await publish(node, 1)
            broker.after["c"].shut()
            command = talk.command(subscribe={"channel": "c", "recoverable": True, "recover": True})
            nursery.start_soon(talk.session.receive, command)
            await wait_all_tasks_blocked()
            await publish(node, 2, 3)
            await wait_all_tasks_blocked()
            broker.after["c"].open()
            reply, *pushes = await talk.news()
            await publish(node, 4)
            pushes += await talk.news()
            assert told(reply["subscribe"]) == [1]
            assert [push["push"]["pub"]["data"] for push in pushes] == [2, 3, 4]


class DeltaReader:
    """Reads publications as the Python SDK does."""

    def __init__(self) -> None:
        self.base = b""
        self.deltas = 0

    def read(self, pub: dict[str, Any]) -> Any:
        assert isinstance(pub["data"], str)
        text = pub["data"].encode()
        if pub.get("delta"):
            self.deltas += 1
            text = bytes(apply_delta(self.base, text))
        self.base = text
        return json.loads(text)


def quote(number: int) -> bytes:
    # Different enough that a difference to any other than the right base gives something else.
    book = [one * one for one in range(number * 3, number * 3 + 40)]
    return json.dumps({"symbol": "REPEATER", "book": book, "price": number}).encode()


class TestDelta:
    """Differences (protocol, section 10)."""

    @pytest.mark.parametrize("by_option", [True, False])
    async def test_first_is_full_then_differences(self, by_option: bool) -> None:
        """All is strings: the first whole, what follows differences that the SDK applies."""
        channel = msgspec.structs.replace(DELTA, delta_publish=by_option)
        async with open_test_node(NodeOptions(channel=channel)) as node, talking(node) as talk:
            result = await talk.subscribe(delta="fossil")
            assert result == {"delta": True}
            await talk.news()
            reader, prices = DeltaReader(), []
            for number in range(5):
                await node.publish(Publication("c", quote(number), delta=not by_option))
                prices += [reader.read(pub)["price"] for pub in await talk.pushes("pub")]
            assert prices == list(range(5))
            assert reader.deltas == 4

    async def test_one_batch(self) -> None:
        """In one batch too, the first is whole for who is new, and a difference for who is not."""
        channel = msgspec.structs.replace(DELTA, delta_publish=True)
        async with (
            open_test_node(NodeOptions(channel=channel)) as node,
            talking(node) as one,
            talking(node) as other,
        ):
            readers = {one: DeltaReader(), other: DeltaReader()}
            await one.subscribe(delta="fossil")
            await one.news()
            await node.publish(Publication("c", quote(0)))
            readers[one].read((await one.pushes("pub"))[0])
            await other.subscribe(delta="fossil")
            await other.news()
            for batch in ([1, 2, 3], [4, 5]):
                for number in batch:
                    await node.publish(Publication("c", quote(number)))
                for talk, reader in readers.items():
                    pubs = await talk.pushes("pub")
                    assert [reader.read(pub)["price"] for pub in pubs] == batch
            assert [readers[one].deltas, readers[other].deltas] == [5, 4]

    async def test_whole_where_a_difference_is_no_gain_or_not_wanted(self) -> None:
        """A difference that is not smaller is not sent, nor one that nobody allowed."""
        async with open_test_node(NodeOptions(channel=DELTA)) as node, talking(node) as talk:
            await talk.subscribe(delta="fossil")
            await talk.news()
            await node.publish(Publication("c", b"1", delta=True))
            await node.publish(Publication("c", b"2", delta=True))
            await node.publish(Publication("c", quote(1)))
            await node.publish(Publication("c", quote(2)))
            pubs = await talk.pushes("pub")
            assert [pub["data"] for pub in pubs] == ["1", "2", quote(1).decode(), quote(2).decode()]
            assert not any("delta" in pub for pub in pubs)

    async def test_recovered_are_strings_and_the_next_is_whole(self) -> None:
        """Recovered publications are whole strings, and the first live one is whole as well."""
        channel = msgspec.structs.replace(DELTA, delta_publish=True)
        async with open_test_node(NodeOptions(channel=channel)) as node, talking(node) as talk:
            for number in range(3):
                await node.publish(Publication("c", quote(number)))
            result = await talk.subscribe(delta="fossil", recoverable=True, recover=True)
            reader = DeltaReader()
            prices = [reader.read(pub)["price"] for pub in result["publications"]]
            await talk.news()
            for number in (3, 4):
                await node.publish(Publication("c", quote(number)))
            prices += [reader.read(pub)["price"] for pub in await talk.pushes("pub")]
            assert prices == [0, 1, 2, 3, 4]
            assert reader.deltas == 1

    async def test_gathered_meanwhile(self) -> None:
        """What comes right behind the reply can be read, and what comes after that too."""
        broker = TestBroker()
        channel = msgspec.structs.replace(DELTA, delta_publish=True)
        async with (
            open_test_node(NodeOptions(channel=channel), broker=broker) as node,
            talking(node) as talk,
            talking(node) as other,
            trio.open_nursery() as nursery,
        ):
            await other.subscribe(delta="fossil")
            await node.publish(Publication("c", quote(0)))
            await wait_all_tasks_blocked()
            broker.after["c"].shut()
            command = talk.command(
                subscribe={"channel": "c", "delta": "fossil", "positioned": True}
            )
            nursery.start_soon(talk.session.receive, command)
            await wait_all_tasks_blocked()
            for number in (1, 2):
                await node.publish(Publication("c", quote(number)), skip_history=True)
            await wait_all_tasks_blocked()
            broker.after["c"].open()
            await wait_all_tasks_blocked()
            for number in (3, 4):
                await node.publish(Publication("c", quote(number)))
            reader = DeltaReader()
            pubs = await talk.pushes("pub")
            assert [reader.read(pub)["price"] for pub in pubs] == [1, 2, 3, 4]

    async def test_not_allowed(self) -> None:
        """Where deltas are not allowed the wish is left out, and data is JSON."""
        async with open_test_node() as node, talking(node) as talk:
            assert await talk.subscribe(delta="fossil") == {}
            await talk.news()
            await node.publish(Publication("c", b"[1]"))
            assert await talk.data() == [[1]]

    async def test_not_with_a_filter(self) -> None:
        """Deltas and a filter together are error 107."""
        channel = msgspec.structs.replace(DELTA, allow_tags_filter=True)
        async with open_test_node(NodeOptions(channel=channel)) as node, talking(node) as talk:
            tf = {"key": "k", "cmp": "ex"}
            assert (await talk.subscribe(delta="fossil", tf=tf))["code"] == 107


NOW = 1_900_000_000


def started_at(node: Node, unix_time: float = NOW) -> None:
    """Have the node's clock show this time now."""
    assert isinstance(node._now, UnixClock)
    node._now.step(unix_time - node._now())


class TestToken:
    """Subscription tokens (protocol, sections 4.9 and 13)."""

    @pytest.mark.parametrize(
        ("known", "code"),
        [
            (TokenExpiredError(), 109),
            (BrokerError("no keys"), 100),
            (TokenInvalidError(), 103),
            (SubscriptionClaims("", "c", grant=SubscriptionGrant(expire_at=1)), 109),
        ],
    )
    async def test_error(self, known: SubscriptionClaims | Exception, code: int) -> None:
        """Expired 109, also by `expire_at`; proving nothing 103; keys unavailable 100, temporary.

        A bad token costs its subscription, and no other one.
        """
        verifier = FakeVerifier(subscriptions={"t": known})
        async with open_test_node(verifier=verifier) as node, talking(node, ends=False) as talk:
            await talk.subscribe("other")
            error = await talk.subscribe(token="t")
            assert error["code"] == code
            assert error.get("temporary", False) is (code == 100)
            assert set(node.hub.channels) == {"other"}

    @pytest.mark.parametrize(
        "known",
        [
            SubscriptionClaims("somebody else", "c"),
            SubscriptionClaims("", "another"),
            SubscriptionClaims("", "c", client="another"),
        ],
    )
    async def test_disconnect(self, known: SubscriptionClaims | Exception) -> None:
        """A token of another user, channel or connection: 3500."""
        verifier = FakeVerifier(subscriptions={"t": known})
        async with open_test_node(verifier=verifier) as node:
            async with talking(node) as talk:
                await talk.subscribe(token="t")
            assert usual(talk.transport.closed_with) == INVALID_TOKEN

    async def test_without_a_verifier(self) -> None:
        """A node that verifies nothing takes no token."""
        async with open_test_node() as node, talking(node, ends=False) as talk:
            assert (await talk.subscribe(token="t"))["code"] == 103

    async def test_grants(self) -> None:
        """A token opens a private channel, with its data, info, overrides and expiry."""
        grant = SubscriptionGrant(
            info=b'{"seat":1}',
            data=b'{\n"hello":1}',
            expire_at=NOW + 60,
            overrides=Overrides(presence=True, force_recovery=True),
        )
        verifier = FakeVerifier(subscriptions={"t": SubscriptionClaims("", "$c", grant=grant)})
        options = NodeOptions(allow_anonymous=True)
        async with open_node(options, verifier=verifier) as node, talking(node) as talk:
            started_at(node)
            result = await talk.subscribe("$c", token="t")
            assert result.pop("epoch")
            assert result.pop("ttl") in (59, 60)
            assert result == {
                "expires": True,
                "recoverable": True,
                "positioned": True,
                "data": {"hello": 1},
            }
            (info,) = (await members(node, "$c")).values()
            assert info.chan_info is not None
            assert bytes(info.chan_info) == b'{"seat":1}'

    async def test_expires(self, autojump_clock: MockClock) -> None:
        """25 s past its expiry a subscription ends with 2501; the connection stays."""
        claims = SubscriptionClaims("", "c", grant=SubscriptionGrant(expire_at=NOW + 60))
        verifier = FakeVerifier(subscriptions={"t": claims})
        options = NodeOptions(ping_interval=1e6)
        async with open_test_node(options, verifier=verifier) as node, talking(node) as talk:
            started_at(node)
            await talk.subscribe(token="t")
            await talk.subscribe("d")
            await talk.news()
            await trio.sleep(84)
            assert await talk.pushes() == []
            await trio.sleep(3)
            assert await talk.pushes() == [
                {
                    "channel": "c",
                    "unsubscribe": {"code": 2501, "reason": "subscription expired"},
                }
            ]
            assert set(talk.client.channels) == {"d"}

    async def test_refreshed(self, autojump_clock: MockClock) -> None:
        """`sub_refresh` moves the expiry; without an expiry it never ends."""
        subscriptions: dict[str, SubscriptionClaims | Exception] = {
            name: SubscriptionClaims("", "c", grant=SubscriptionGrant(expire_at=at))
            for name, at in (("first", NOW + 60), ("second", NOW + 200), ("last", 0))
        }
        verifier = FakeVerifier(subscriptions=subscriptions)
        options = NodeOptions(ping_interval=1e6)
        async with open_test_node(options, verifier=verifier) as node, talking(node) as talk:
            started_at(node)
            await talk.subscribe(token="first")
            await trio.sleep(50)
            reply = await talk.ask(sub_refresh={"channel": "c", "token": "second"})
            assert reply["sub_refresh"] == {"expires": True, "ttl": 150}
            await trio.sleep(150)
            assert "c" in talk.client.channels
            reply = await talk.ask(sub_refresh={"channel": "c", "token": "last"})
            assert reply["sub_refresh"] == {}
            await trio.sleep(1_000)
            assert "c" in talk.client.channels

    @pytest.mark.parametrize(
        ("request_", "code"),
        [
            ({"channel": "other", "token": "t"}, 103),
            ({"channel": "c"}, 107),
            ({"channel": "c", "token": "unavailable"}, 100),
        ],
    )
    async def test_refresh_error(self, request_: dict[str, str], code: int) -> None:
        """Not subscribed 103, no token 107, unavailable keys 100; the subscription stays."""
        verifier = FakeVerifier(subscriptions={"unavailable": BrokerError()})
        async with open_test_node(verifier=verifier) as node, talking(node) as talk:
            await talk.subscribe()
            reply = await talk.ask(sub_refresh=request_)
            assert reply["error"]["code"] == code
            assert "c" in talk.client.channels

    @pytest.mark.parametrize(
        ("known", "code"),
        [
            (TokenExpiredError(), 109),
            (SubscriptionClaims("", "c", grant=SubscriptionGrant(expire_at=1)), 109),
            (TokenInvalidError(), 103),
        ],
    )
    async def test_refresh_by_a_bad_token(
        self, known: SubscriptionClaims | Exception, code: int
    ) -> None:
        """2501, at which SDKs subscribe again, comes before the error, which alone is final."""
        verifier = FakeVerifier(subscriptions={"bad": known})
        async with (
            open_test_node(verifier=verifier) as node,
            talking(node, ends=False) as talk,
        ):
            await talk.subscribe()
            await talk.subscribe("other")
            push, reply = await talk.say({"id": 9, "sub_refresh": {"channel": "c", "token": "bad"}})
            ended = {"code": 2501, "reason": "subscription expired"}
            assert push == {"push": {"channel": "c", "unsubscribe": ended}}
            assert reply["error"]["code"] == code
            assert reply["error"]["temporary"]  # The Go SDK gives up at a permanent one.
            assert set(talk.client.channels) == {"other"}

    async def test_ended_while_its_new_token_is_proven(self) -> None:
        """The refresh is refused (103), and nothing is told of the subscription again."""

        class Waiting(FakeVerifier):
            asked, answered = trio.Event(), trio.Event()

            async def verify_subscription(self, token: str) -> SubscriptionClaims:
                self.asked.set()
                await self.answered.wait()
                raise TokenExpiredError

        verifier = Waiting()
        async with (
            open_test_node(verifier=verifier) as node,
            talking(node, ends=False) as talk,
            trio.open_nursery() as nursery,
        ):
            await talk.subscribe()
            await talk.news()
            command = talk.command(sub_refresh={"channel": "c", "token": "t"})
            nursery.start_soon(talk.session.receive, command)
            await verifier.asked.wait()
            await node.unsubscribe("", "c")
            verifier.answered.set()
            push, reply = await talk.news()
            assert push["push"]["unsubscribe"]["code"] == 2000
            assert reply["error"]["code"] == 109

    async def test_refresh_of_another_channel(self) -> None:
        """A token of another channel ends the connection with 3500."""
        verifier = FakeVerifier(subscriptions={"t": SubscriptionClaims("", "d")})
        async with open_test_node(verifier=verifier) as node:
            async with talking(node) as talk:
                await talk.subscribe()
                await talk.ask(sub_refresh={"channel": "c", "token": "t"})
            assert usual(talk.transport.closed_with) == INVALID_TOKEN

    async def test_expiry_while_history_is_held(self, autojump_clock: MockClock) -> None:
        """A subscription that expires while it joins is answered first, and ended then."""
        broker = TestBroker()
        grants = {
            name: SubscriptionClaims("", name, grant=SubscriptionGrant(expire_at=NOW + 60))
            for name in ("c", "d")
        }
        verifier = FakeVerifier(subscriptions=dict(grants))
        options = NodeOptions(ping_interval=1e6, publish_timeout=100)
        async with (
            open_test_node(options, broker=broker, verifier=verifier) as node,
            talking(node, ends=False) as talk,
            trio.open_nursery() as nursery,
        ):
            started_at(node)
            await talk.subscribe("d", token="d")
            await talk.news()
            broker.before["c"].shut()
            command = talk.command(subscribe={"channel": "c", "token": "c", "positioned": True})
            nursery.start_soon(talk.session.receive, command)
            await trio.sleep(90)
            assert [push["channel"] for push in await talk.pushes()] == ["d"]
            broker.before["c"].open()
            await trio.sleep(3)
            reply, push = await talk.news()
            assert "subscribe" in reply
            assert push["push"]["unsubscribe"]["code"] == 2501


async def test_server_side_expiry(autojump_clock: MockClock) -> None:
    """A server's own subscription that expires ends the connection with 3006."""
    grant = ConnectionGrant("ann", channels={"c": SubscriptionGrant(expire_at=NOW + 60)})
    verifier = FakeVerifier(connections={"t": grant})
    async with open_test_node(NodeOptions(ping_interval=1e6), verifier=verifier) as node:
        started_at(node)
        async with talking(node, connected=False) as talk:
            result = await talk.connect("t")
            assert result["subs"]["c"]["expires"] is True
            assert result["subs"]["c"]["ttl"] in (59, 60)
            await trio.sleep(84)
            assert talk.client.end is None
            await trio.sleep(3)
        assert usual(talk.transport.closed_with) == SUBSCRIPTION_EXPIRED


async def test_who_cannot_refresh_is_not_told_to(autojump_clock: MockClock) -> None:
    """The push of a subscription that the server API made says nothing of its expiry; it ends."""
    async with open_test_node(NodeOptions(ping_interval=1e6)) as node, talking(node) as talk:
        started_at(node)
        await node.subscribe("", "c", grant=SubscriptionGrant(expire_at=NOW + 60))
        (pushed,) = await talk.pushes("subscribe")
        assert not {"expires", "ttl"} & pushed.keys()
        await trio.sleep(90)
        assert talk.client.end == SUBSCRIPTION_EXPIRED


async def test_lost_position_is_recovered() -> None:
    """After 2500 the client comes back by its position and has everything."""
    broker = TestBroker(lambda event: [] if event.data == b"2" else [event])
    async with open_test_node(broker=broker) as node, talking(node) as talk:
        result = await talk.subscribe(positioned=True, recoverable=True)
        await talk.news()
        await publish(node, 1)
        assert await talk.data() == [1]
        await publish(node, 2, 3)
        (ended,) = await talk.pushes()
        assert ended["unsubscribe"] == {"code": 2500, "reason": "insufficient state"}
        again: dict[str, Any] = await talk.subscribe(
            positioned=True, recoverable=True, recover=True, offset=1, epoch=result["epoch"]
        )
        assert told(again) == [2, 3]
