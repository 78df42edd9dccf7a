"""What one client asks for may take long: it is done step by step, and others have their turns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.access.channel_rules import ChannelRules
from repeater.errors import CHANNEL_LIMIT
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo import codecs, protobuf_format
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI, CENTRIFUGE_STREAM, Codec
from repeater.protocol.centrifugo.filters import Predicate, TagsFilter
from repeater.protocol.centrifugo.protobuf_codecs import CENTRIFUGE_PROTOBUF
from repeater.protocol.centrifugo.protobuf_writer import write_publication
from repeater.publication import Publication
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.brokers import TestBroker
from tests.conversation import talking
from tests.refusing import usual


class Passes(trio.abc.Instrument):
    """How often something happens: in all, and at most in one pass of the loop."""

    def __init__(self) -> None:
        self.all = self.most = self._now = 0

    def note(self) -> None:
        self.all += 1
        self._now += 1
        self.most = max(self.most, self._now)

    def after_io_wait(self, timeout: float) -> None:  # Trio's signature
        self._now = 0


@pytest.fixture
async def passes() -> AsyncIterator[Passes]:
    passes = Passes()
    trio.lowlevel.add_instrument(passes)
    yield passes
    trio.lowlevel.remove_instrument(passes)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch, passes: Passes) -> Passes:
    """The publications that filters judge; each filter wants every other one."""

    def compile_filter(_tags: TagsFilter) -> Predicate:
        def matches(tags: Mapping[str, str]) -> bool:
            passes.note()
            return tags["n"] == "1"

        return matches

    monkeypatch.setattr(codecs, "compile_filter", compile_filter)
    return passes


FILTERING = ChannelOptions(allow_tags_filter=True, history_size=200)
NO_TIME = NodeOptions(channel=FILTERING, fanout_budget=0.0, channel_limit=1_000)
TF = {"key": "n", "cmp": "eq", "val": "1"}


async def publish(node: Node, count: int) -> None:
    for number in range(count):
        await node.publish(Publication("c", b"%d" % number, tags={"n": str(number % 2)}))


@pytest.mark.parametrize("codec", [CENTRIFUGE_JSON_ASGI, CENTRIFUGE_STREAM])
async def test_fan_out_gives_way_while_a_filter_judges(judged: Passes, codec: Codec) -> None:
    """A filter takes 50 us for each publication, and a batch may have a thousand of them."""
    async with open_test_node(NO_TIME) as node, talking(node, codec=codec) as talk:
        await talk.session.receive(talk.command(subscribe={"channel": "c", "tf": TF}))
        sent = len(talk.transport.sent)
        await publish(node, 200)
        await wait_all_tasks_blocked()
        heard = b"".join(talk.transport.sent[sent:])
        assert [b'"data":%d,' % number in heard for number in range(200)] == [False, True] * 100
        assert judged.most <= 16
        assert len(talk.transport.sent) == sent + (1 if codec.framed else 100)


async def test_fan_out_gives_way_while_it_writes_protobuf(
    monkeypatch: pytest.MonkeyPatch, passes: Passes
) -> None:
    """A message takes 1 to 2 us, and a batch may have two thousand."""

    def note(publication: Publication, data: bytes) -> bytes:
        passes.note()
        return write_publication(publication, data)

    monkeypatch.setattr(protobuf_format, "write_publication", note)
    transport = MemoryTransport(CENTRIFUGE_PROTOBUF)
    async with open_test_node(NO_TIME) as node, connect(node, transport) as client:
        client.subscribe("c")
        await publish(node, 200)
        await wait_all_tasks_blocked()
        assert passes.all == 200
        assert passes.most <= 16
        assert len(transport.sent) == 1


async def test_a_recovery_gives_way_while_a_filter_judges(judged: Passes) -> None:
    """Each publication is judged once, and readers have their turns between."""
    async with open_test_node(NO_TIME) as node, talking(node) as talk:
        await publish(node, 200)
        await wait_all_tasks_blocked()
        result = await talk.subscribe(recover=True, recoverable=True, tf=TF)
        assert [one["data"] for one in result["publications"]] == [*range(1, 200, 2)]
        assert (judged.all, judged.most) == (200, 1)


async def test_what_gathers_is_not_judged(judged: Passes) -> None:
    """A thousand filters may wait for their history, and fan-out goes on for everybody else."""
    broker = TestBroker()
    async with open_test_node(NO_TIME, broker=broker) as node, talking(node) as talk:
        broker.before["c"].shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(talk.subscribe, positioned=True, tf=TF))
            await wait_all_tasks_blocked()
            await publish(node, 50)
            await wait_all_tasks_blocked()
            assert judged.all == 0
            broker.before["c"].open()
        assert judged.all == 0


async def test_a_connect_gives_way_while_names_are_judged(
    monkeypatch: pytest.MonkeyPatch, passes: Passes
) -> None:
    """A message has room for thousands of channels that a client says it has heard."""
    may_subscribe = ChannelRules.may_subscribe

    def judge(rules: ChannelRules, channel: str, user: str) -> bool:
        passes.note()
        return may_subscribe(rules, channel, user)

    monkeypatch.setattr(ChannelRules, "may_subscribe", judge)
    async with open_test_node(NO_TIME) as node, talking(node, connected=False) as talk:
        subs = {f"{number}:": {"recover": True} for number in range(1_000)}
        await talk.connect(subs={**subs, "c": {}})
        assert list(talk.client.channels) == ["c"]
        assert (passes.all, passes.most) == (1_001, 1)


async def test_positions_that_nobody_has_had_are_not_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client names twice as many channels as it may have at most, whether they are or not."""
    monkeypatch.setattr(ChannelRules, "may_subscribe", None)
    async with open_test_node() as node, talking(node, connected=False, ends=True) as talk:
        await talk.connect(subs={f"{number}:": {} for number in range(257)})
        assert usual(talk.client.end) == CHANNEL_LIMIT
        assert node.limited["channel_limit"] == 1
