"""What a client missed, asked for or waits for never fills more of its outbox than it may."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant, SubscriptionGrant
from repeater.api.budget import Budget
from repeater.api.channel import ChannelBody
from repeater.api.channel import history as api_history
from repeater.api.channel import presence as api_presence
from repeater.brokers.receipts import settled
from repeater.clients.session import Session
from repeater.clients.unidirectional import UnidirectionalSession
from repeater.errors import BAD_REQUEST, CHANNEL_LIMIT, CONNECTION_CLOSED, ErrorCode, ReplyError
from repeater.fanout.recovery import Room, fitting, recover
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import (
    CENTRIFUGE_JSON,
    CENTRIFUGE_JSON_ASGI,
    CENTRIFUGE_STREAM,
    CENTRIFUGE_UNI,
    CENTRIFUGE_UNI_ASGI,
    Codec,
)
from repeater.protocol.centrifugo.commands import HistoryRequest
from repeater.protocol.centrifugo.filters import TagsFilter
from repeater.protocol.centrifugo.replies import publication_result
from repeater.protocol.sse.event_stream import EVENT_STREAM
from repeater.publication import ClientInfo, Publication, StreamPosition, checked
from repeater.testing import StallingTransport, connect, open_test_node
from tests.brokers import TestBroker
from tests.conversation import FakeVerifier, talking
from tests.refusing import usual, usual_error

LIMIT = 65_536  # of an outbox, so half of it is 32,768
OPTIONS = NodeOptions(outbox_limit=LIMIT, channel=ChannelOptions(presence=True))


def sized(size: int) -> bytes:
    """JSON text of this many bytes."""
    return b'"' + b"x" * (size - 2) + b'"'


async def publish(node: Node, channel: str, *sizes: int) -> StreamPosition:
    position = None
    for size in sizes:
        position = await node.publish(Publication(channel, sized(size)))
    await wait_all_tasks_blocked()
    assert position is not None
    return position


async def epoch_of(node: Node, channel: str) -> str:
    _, top = await node.history(channel, limit=0)
    return top.epoch


def since_start(epoch: str = "") -> dict[str, Any]:
    return {"recoverable": True, "recover": True, "offset": 0, "epoch": epoch}


_texts = st.text(st.sampled_from('ab"\\\n\t\x1f\x7f\u00fc\u20ac\U0001f600'), max_size=20)
_json = st.one_of(
    _texts,
    st.lists(st.integers() | _texts, max_size=6),
    st.dictionaries(_texts, st.lists(_texts, max_size=3), max_size=4),
)
_publications = st.builds(
    Publication,
    _texts.filter(bool),
    st.tuples(_json, st.sampled_from([None, 1, "\t"]), st.booleans()).map(
        lambda made: json.dumps(made[0], indent=made[1], ensure_ascii=made[2]).encode()
    ),
    offset=st.sampled_from([0, 1, 2**64 - 1]),
    epoch=st.just("an-epoch"),
    tags=st.none() | st.dictionaries(_texts, _texts, max_size=3),
    info=st.none() | st.builds(ClientInfo, _texts, _texts),
)


@pytest.mark.parametrize(
    "codec",
    [
        CENTRIFUGE_JSON,
        CENTRIFUGE_JSON.delta,
        CENTRIFUGE_STREAM,
        CENTRIFUGE_UNI,
        EVENT_STREAM,
    ],
    ids=repr,
)
@given(publication=_publications)
def test_a_size_is_what_is_written_at_most(codec: Codec, publication: Publication) -> None:
    """No push, event or recovered publication is longer than it was counted."""
    publication = checked(publication)
    size = codec.size(publication)
    assert sum(map(len, codec.publications([publication]))) <= size
    if codec.pushes:
        recovered = publication_result(publication, quoted=codec is CENTRIFUGE_JSON.delta)
        assert len(msgspec.json.encode(recovered)) <= size
    assert size <= 3 * len(publication.data) + 2_000


def test_what_a_filter_leaves_out_takes_no_room() -> None:
    """A filtered subscription is counted by what it gets."""
    codec = CENTRIFUGE_JSON.filtered(TagsFilter(key="a", cmp="eq", val="1"))
    assert codec.size(Publication("c", b"1", tags={"a": "2"})) == 0
    wanted = Publication("c", b"1", tags={"a": "1"})
    assert codec.size(wanted) == CENTRIFUGE_JSON.size(wanted)


@given(st.lists(st.integers(0, 60), max_size=8), st.integers(0, 120), st.integers(0, 100))
def test_recovered_whole_within_the_room_or_not_at_all(
    sizes: list[int], limit: int, used: int
) -> None:
    """Never a part, never more than the room, but a single publication in any case."""
    missed = [
        Publication("c", b"x" * size, offset=number, epoch="e")
        for number, size in enumerate(sizes, 1)
    ]
    room = Room(limit)
    room.used = used
    top = StreamPosition(len(missed), "e")
    joined = recover(StreamPosition(0, "e"), missed, top, [], room)
    fits = used + sum(sizes) <= limit
    alone = not used and sum(size > 0 for size in sizes) == 1
    assert joined.recovered is (fits or alone or not sum(sizes))
    assert list(joined.publications) == (missed if joined.recovered else [])
    assert joined.position == top
    assert room.used == used + (sum(sizes) if joined.recovered else 0)


@given(st.lists(st.integers(0, 60), max_size=8), st.integers(0, 120))
def test_history_is_as_much_as_fits(sizes: list[int], limit: int) -> None:
    """The longest beginning that fits; the first one always."""
    past = [Publication("c", b"x" * size) for size in sizes]
    found = list(fitting(past, lambda one: len(one.data), limit))
    assert found == past[: len(found)]
    assert sum(sizes[: len(found)]) <= limit or len(found) == 1
    assert len(found) == len(past) or sum(sizes[: len(found) + 1]) > limit


@pytest.mark.parametrize(("count", "recovered"), [(3, True), (4, False)])
async def test_more_than_half_an_outbox_is_not_recovered(count: int, recovered: bool) -> None:
    """The client is told so once, with the top, and goes on: it is not cut again and again."""
    async with open_test_node(OPTIONS) as node, talking(node) as talk:
        top = await publish(node, "c", *[10_000] * count)
        result = await talk.subscribe(**since_start(top.epoch))
        assert result["was_recovering"] is True
        assert result.get("recovered", False) is recovered
        assert len(result.get("publications", ())) == (count if recovered else 0)
        assert result.get("offset", 0) == (0 if recovered else count)
        await node.publish(Publication("c", b"1"))
        assert await talk.data() == [1]


async def test_quotes_count_twice_in_a_delta_subscription() -> None:
    """The data is a string there: what would fit as it is does not fit escaped."""
    options = NodeOptions(
        outbox_limit=LIMIT, channel=ChannelOptions(allowed_delta_types=frozenset({"fossil"}))
    )
    async with open_test_node(options) as node:
        for _ in range(2):
            await node.publish(Publication("c", json.dumps(["" for _ in range(3_000)]).encode()))
        for delta, recovered in (({}, True), ({"delta": "fossil"}, False)):
            async with talking(node) as talk:
                result = await talk.subscribe(**since_start(await epoch_of(node, "c")), **delta)
                assert result.get("recovered", False) is recovered


async def test_a_single_publication_is_always_recovered() -> None:
    """It was accepted, so it arrives, however large: also the newest one of a cache."""
    cache = ChannelOptions(force_recovery_mode="cache")
    options = NodeOptions(outbox_limit=LIMIT, namespaces={"cache": cache})
    async with open_test_node(options) as node, talking(node) as talk:
        for channel in ("c", "cache:c"):
            await publish(node, channel, 60_000)
            result = await talk.subscribe(channel, **since_start(await epoch_of(node, channel)))
            assert result["recovered"] is True
            assert len(result["publications"]) == 1


@asynccontextmanager
async def server_side(node: Node, channels: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The subscriptions in a connect reply of a client that comes back to these channels."""
    async with talking(node, connected=False) as talk:
        yield (await talk.connect(subs=channels))["subs"]
    assert talk.client.end == CONNECTION_CLOSED


async def test_the_channels_of_one_answer_count_together() -> None:
    """A connect recovers what fits in all; the rest of the channels are told that they lost."""
    names = [f"c{number}" for number in range(20)]
    async with open_test_node(OPTIONS) as node:
        for name in names:
            await publish(node, name, 2_500, 2_500)
        subs = {name: since_start(await epoch_of(node, name)) for name in names}
        async with server_side(node, subs) as told:
            recovered = [name for name in names if told[name].get("recovered")]
            assert recovered == names[:6]
            for name in names:
                count = len(told[name].get("publications", ()))
                assert count == (2 if name in recovered else 0)
                assert told[name].get("offset", 0) == (0 if name in recovered else 2)


async def test_a_unidirectional_client_counts_alike() -> None:
    """The same rule where the connect result is a push."""
    async with open_test_node(OPTIONS) as node:
        await publish(node, "c", *[10_000] * 4)
        transport = StallingTransport(CENTRIFUGE_UNI_ASGI)
        async with connect(node, transport, ready=False) as client:
            subs = {"c": since_start(await epoch_of(node, "c"))}
            await UnidirectionalSession(node, client).receive(json.dumps({"subs": subs}))
            assert client.end is None
            transport.allow(LIMIT)
            await wait_all_tasks_blocked()
            told = json.loads(transport.sent[0])["connect"]["subs"]["c"]
            assert "recovered" not in told
            assert told["offset"] == 4
        assert client.end == CONNECTION_CLOSED  # not cut, which would have left the block early


@pytest.mark.parametrize(("count", "recovered"), [(3, True), (4, False)])
async def test_a_subscription_by_the_back_end_counts_alike(count: int, recovered: bool) -> None:
    """Missed publications that follow a `subscribe` push are bounded as those in a reply."""
    async with open_test_node(OPTIONS) as node, talking(node) as talk:
        await publish(node, "c", *[10_000] * count)
        since = StreamPosition(0, await epoch_of(node, "c"))
        await node.subscribe("", "c", since=since)
        pushes = await talk.pushes()
        assert pushes[0]["subscribe"].get("recovered", False) is recovered
        assert len(pushes) == 1 + (count if recovered else 0)


async def test_subscriptions_of_one_message_recover_one_behind_the_other() -> None:
    """An SDK asks for all its channels in one message: each answer waits for the one before it."""
    names = [f"c{number}" for number in range(10)]
    async with open_test_node(OPTIONS) as node:
        for name in names:
            await publish(node, name, *[5_000] * 5)
        transport = StallingTransport(CENTRIFUGE_JSON_ASGI)
        transport.allow(1_000)
        async with connect(node, transport, ready=False) as client:
            session = Session(node, client)
            commands = [{"id": 1, "connect": {}}]
            for number, name in enumerate(names, 2):
                asked = {"channel": name, **since_start(await epoch_of(node, name))}
                commands.append({"id": number, "subscribe": asked})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.receive, "\n".join(map(json.dumps, commands)))
                for _ in range(1_000):
                    await wait_all_tasks_blocked()
                    assert client.outbox.waiting <= LIMIT
                    transport.allow(1_000)
            assert client.end is None
            text = b"".join(transport.sent).decode()
            replies, decoder = [], json.JSONDecoder()
            while text:
                reply, end = decoder.raw_decode(text)
                replies.append(reply)
                text = text[end:].lstrip()
            assert all(one["subscribe"]["recovered"] for one in replies[1:])
            assert [len(one["subscribe"]["publications"]) for one in replies[1:]] == [5] * 10
        assert client.end == CONNECTION_CLOSED


async def test_histories_of_one_message_come_one_behind_the_other() -> None:
    """A client that asks for much at once gets it all, if it goes on reading."""
    async with open_test_node(OPTIONS) as node:
        await publish(node, "c", *[10_000] * 3)
        transport = StallingTransport(CENTRIFUGE_JSON_ASGI)
        transport.allow(1_000)
        async with connect(node, transport, ready=False) as client:
            session = Session(node, client)
            commands: list[dict[str, Any]] = [{"id": 1, "connect": {}}]
            commands += [
                {"id": number, "history": {"channel": "c", "limit": -1}} for number in range(2, 12)
            ]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.receive, "\n".join(map(json.dumps, commands)))
                for _ in range(400):
                    await wait_all_tasks_blocked()
                    transport.allow(1_000)
            assert client.end is None
            assert b"".join(transport.sent).count(b'"history"') == 10
        assert client.end == CONNECTION_CLOSED


@pytest.mark.parametrize("limit", [-1, 4])
@pytest.mark.parametrize("reverse", [False, True])
async def test_history_gives_as_many_as_fit(limit: int, reverse: bool) -> None:
    """To a client and to a back end alike; the top says that there are more."""
    async with open_test_node(OPTIONS) as node, talking(node) as talk:
        await publish(node, "c", *[10_000] * 4)
        reply = await talk.ask(history={"channel": "c", "limit": limit, "reverse": reverse})
        request = HistoryRequest("c", limit, reverse=reverse)
        for past in (
            reply["history"],
            json.loads(msgspec.json.encode(await api_history(node, request, Budget(1)))),
        ):
            assert [one["offset"] for one in past["publications"]] == (
                [4, 3, 2] if reverse else [1, 2, 3]
            )
            assert past["offset"] == 4
        await publish(node, "c", 60_000)
        since = {"offset": 4, "epoch": await epoch_of(node, "c")}
        reply = await talk.ask(history={"channel": "c", "limit": limit, "since": since})
        assert [one["offset"] for one in reply["history"]["publications"]] == [5]


async def test_presence_that_does_not_fit_is_an_error() -> None:
    """A client gets 106, keeps its connection and may count; the back end gets them all."""
    async with open_test_node(OPTIONS) as node, talking(node) as talk:
        for number in range(300):
            await settled(node.presence_store.add("c", ClientInfo("u", f"client-{number}")))
        reply = await talk.ask(presence={"channel": "c"})
        assert usual_error(reply["error"]) == {"code": 106, "message": "limit exceeded"}
        counted = await talk.ask(presence_stats={"channel": "c"})
        assert counted["presence_stats"]["num_clients"] == 300
        assert len((await api_presence(node, ChannelBody("c"), Budget(1))).presence) == 300
        await settled(node.presence_store.add("d", ClientInfo("u" * 40_000, "one")))
        assert (await talk.ask(presence={"channel": "d"}))["error"]["code"] == 106


async def test_a_connect_reply_that_does_not_fit() -> None:
    """More channels than an answer can tell of: closed with 3505, for good."""
    channels = {f"c{number}": SubscriptionGrant() for number in range(300)}
    verifier = FakeVerifier({"t": ConnectionGrant(user="u", channels=channels)})
    options = NodeOptions(outbox_limit=LIMIT, channel_limit=1_000)
    async with (
        open_test_node(options, verifier=verifier) as node,
        talking(node, connected=False, ends=True) as talk,
    ):
        await talk.connect("t")
        assert usual(talk.client.end) == CHANNEL_LIMIT
        assert not node.hub.channels


async def test_what_gathers_while_a_client_comes_back_is_bounded() -> None:
    """Beyond half an outbox it is dropped, and the answer says `recovered: false` behind it."""
    broker = TestBroker()
    async with (
        open_test_node(OPTIONS, broker=broker) as node,
        talking(node) as talk,
        trio.open_nursery() as nursery,
    ):
        await publish(node, "c", 10)
        epoch = await epoch_of(node, "c")
        broker.after["c"].shut()
        asked = {"channel": "c", **since_start(epoch)}
        nursery.start_soon(talk.session.receive, talk.command(subscribe=asked))
        await wait_all_tasks_blocked()
        await publish(node, "c", *[10_000] * 5)
        (gathered,) = node.hub.channels["c"].joining.values()
        assert sum(len(one.data) for one in gathered) <= LIMIT // 2
        await publish(node, "c", 7)
        broker.after["c"].open()
        await wait_all_tasks_blocked()
        (reply,) = await talk.news()
        assert "recovered" not in reply["subscribe"]
        assert "publications" not in reply["subscribe"]
        assert reply["subscribe"]["offset"] == 7
        await publish(node, "c", 8)
        assert await talk.data() == ["x" * 6]


async def test_what_was_dropped_is_recovered_if_history_has_it() -> None:
    """History that is read after the drop holds what was dropped: nothing is lost."""
    broker = TestBroker()
    options = NodeOptions(outbox_limit=LIMIT)
    async with (
        open_test_node(options, broker=broker) as node,
        talking(node) as talk,
        trio.open_nursery() as nursery,
    ):
        await publish(node, "c", 20_000)
        since = await publish(node, "c", 20_000)
        broker.before["c"].shut()
        asked = {"channel": "c", "recoverable": True, "recover": True, "offset": since.offset}
        asked["epoch"] = since.epoch
        nursery.start_soon(talk.session.receive, talk.command(subscribe=asked))
        await wait_all_tasks_blocked()
        (gathered,) = node.hub.channels["c"].joining.values()
        await publish(node, "c", 20_000)
        gathered.gather([], LIMIT)  # as if more had come than fits
        assert gathered.dropped == StreamPosition(3, since.epoch)
        broker.before["c"].open()
        await wait_all_tasks_blocked()
        (reply,) = await talk.news()
        assert reply["subscribe"]["recovered"] is True
        assert [one["offset"] for one in reply["subscribe"]["publications"]] == [3]


async def test_what_gathers_while_a_client_comes_anew_is_bounded() -> None:
    """A new subscriber misses nothing: its position is behind what was dropped."""
    broker = TestBroker()
    async with (
        open_test_node(OPTIONS, broker=broker) as node,
        talking(node) as talk,
        trio.open_nursery() as nursery,
    ):
        broker.after["c"].shut()
        asked = {"channel": "c", "recoverable": True}
        nursery.start_soon(talk.session.receive, talk.command(subscribe=asked))
        await wait_all_tasks_blocked()
        await publish(node, "c", *[20_000] * 9)
        broker.after["c"].open()
        await wait_all_tasks_blocked()
        (reply,) = await talk.news()
        assert reply["subscribe"]["offset"] == 9
        await publish(node, "c", 5)
        assert await talk.data() == ["xxx"]


async def test_what_gathers_for_a_connect_counts_together() -> None:
    """While one channel's history is awaited, the others gather: all of them in one room."""
    broker = TestBroker()
    names = [f"c{number}" for number in range(10)]
    async with (
        open_test_node(OPTIONS, broker=broker) as node,
        talking(node, connected=False) as talk,
        trio.open_nursery() as nursery,
    ):
        subs = {name: since_start(await epoch_of(node, name)) for name in names}
        broker.before["c9"].shut()
        nursery.start_soon(talk.session.receive, talk.command(connect={"subs": subs}))
        await wait_all_tasks_blocked()
        for name in names:
            await publish(node, name, 5_000, 5_000)
        kept = [
            one
            for name in names
            for gathered in node.hub.channels[name].joining.values()
            for one in gathered
        ]
        assert sum(len(one.data) for one in kept) <= LIMIT // 2
        broker.before["c9"].open()
        await wait_all_tasks_blocked()
        reply, *pushes = await talk.news()
        told = reply["connect"]["subs"]
        live = [push["push"]["channel"] for push in pushes]
        for name in names:
            recovered = told[name].get("recovered", False)
            got = len(told[name].get("publications", ())) + live.count(name)
            assert got == (2 if recovered else 0)
            assert told[name].get("offset", 0) == (0 if recovered else 2)
        assert 0 < sum(told[name].get("recovered", False) for name in names) < 10
        assert talk.client.end is None


async def test_the_room_is_given_back() -> None:
    """Who is unsubscribed while it joins takes no room of the others any longer."""
    room = Room(100)
    async with open_test_node() as node, talking(node) as talk:
        one = talk.client.join("a", CENTRIFUGE_JSON_ASGI, room)
        talk.client.join("b", CENTRIFUGE_JSON_ASGI, room)
        one.channel.joining[one].gather([Publication("a", b"1")], 90)
        assert room.used == 90
        talk.client.unsubscribe("a")
        assert room.used == 0
        talk.client.unsubscribe("b")


@pytest.mark.parametrize("offset", [-1, 2**64, 10**4_000])
async def test_an_offset_is_an_unsigned_number_of_64_bits(offset: int) -> None:
    """Anything else is a bad request, in every command that takes a position."""
    async with open_test_node() as node, talking(node, ends=False) as talk:
        asked = {**since_start(), "offset": offset}
        assert (await talk.subscribe(**asked))["code"] == 107
        assert "c" not in talk.client.channels
        since = {"offset": offset}
        reply = await talk.ask(history={"channel": "c", "limit": 1, "since": since})
        assert reply["error"]["code"] == 107
        with pytest.raises(ReplyError) as caught:
            await node.subscribe("", "c", since=StreamPosition(offset, ""))
        assert caught.value.code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize("offset", [-1, 2**64])
async def test_an_offset_of_a_connect(offset: int) -> None:
    """A connect that names no possible position breaks the protocol: 3501, for good."""
    async with open_test_node() as node, talking(node, connected=False, ends=True) as talk:
        subs = {"c": {**since_start(), "offset": offset}}
        await talk.session.receive(talk.command(connect={"subs": subs}))
        assert usual(talk.client.end) == BAD_REQUEST
        assert not node.hub.channels
