"""Batches and streams on an engine that answers late: one wait for all, and the order is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.api.methods import call
from repeater.api.publishing import IN_FLIGHT
from repeater.api.stream import EventStream
from repeater.brokers.contract import Outcome
from repeater.brokers.receipts import Answer
from repeater.brokers.source_rows import SourceRow
from repeater.errors import BrokerError, ErrorCode, IntakeFullError, ReplyError
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import Announcement, Publication
from repeater.testing import open_test_node
from tests.brokers import LateAnswers
from tests.conversation import talking
from tests.refusing import usual_error

DOWN = BrokerError("down")
INTERNAL = {"code": 100, "message": "internal server error"}
BAD_REQUEST = {"code": 107, "message": "bad request"}


@asynccontextmanager
async def late_node(**options: Any) -> AsyncIterator[tuple[Node, LateAnswers]]:
    broker = LateAnswers()
    async with open_test_node(NodeOptions(**options), broker=broker) as node:
        await wait_all_tasks_blocked()
        yield node, broker


class Call:
    """A call that is under way, and its answer as soon as there is one."""

    def __init__(self) -> None:
        self.status = 0
        self.result: Any = None

    def ended(self) -> bool:
        return self.status > 0

    async def make(self, node: Node, method: str, body: object) -> None:
        answer = await call(node, method, msgspec.json.encode(body))
        self.result = msgspec.json.decode(answer.body)
        self.status = answer.status

    async def end(self, stream: EventStream) -> None:
        answer = await stream.answer()
        self.result = msgspec.json.decode(answer.body)["result"]
        self.status = answer.status


def publishing(*numbers: int) -> list[dict[str, Any]]:
    return [{"publish": {"channel": "c", "data": number}} for number in numbers]


def offsets(replies: list[dict[str, Any]]) -> list[Any]:
    """What each item of a batch came to: an offset, or the error."""
    return [
        usual_error(one["error"]) if "error" in one else one["publish"]["offset"] for one in replies
    ]


def lines(*numbers: int) -> bytes:
    return b"".join(b'{"channel":"c","data":%d}\n' % number for number in numbers)


async def test_a_batch_waits_once() -> None:
    """All its events are submitted before the first is answered, and the replies are in order."""
    made = Call()
    async with late_node() as (node, broker), trio.open_nursery() as nursery:
        nursery.start_soon(made.make, node, "batch", {"commands": publishing(1, 2, 3)})
        await wait_all_tasks_blocked()
        assert broker.asked == ["1", "2", "3"]
        broker.answer(2)
        await wait_all_tasks_blocked()
        assert not made.ended()
        broker.answer()
    assert offsets(made.result["replies"]) == [1, 2, 3]


async def test_another_method_comes_behind_the_answers() -> None:
    """A history in a batch has the events before it and none of those behind it."""
    items = [*publishing(1, 2), {"history": {"channel": "c", "limit": -1}}, *publishing(3)]
    made = Call()
    async with late_node() as (node, broker), trio.open_nursery() as nursery:
        nursery.start_soon(made.make, node, "batch", {"commands": items})
        await wait_all_tasks_blocked()
        assert broker.asked == ["1", "2"]
        broker.answer()
        await wait_all_tasks_blocked()
        assert broker.asked == ["1", "2", "history", "3"]
        broker.answer()
    first, second, history, third = made.result["replies"]
    assert offsets([first, second, third]) == [1, 2, 3]
    assert [one["data"] for one in history["history"]["publications"]] == [1, 2]


async def test_a_refused_event_fails_alone() -> None:
    """An engine's refusal, or its failure, is the reply to one item of a batch."""
    made = Call()
    async with late_node() as (node, broker), trio.open_nursery() as nursery:
        nursery.start_soon(made.make, node, "batch", {"commands": publishing(1, 2, 3, 4)})
        await wait_all_tasks_blocked()
        broker.answer(1)
        broker.answer(1, ReplyError(ErrorCode.BAD_REQUEST))
        broker.answer(1, DOWN)
        broker.answer(1)
    assert offsets(made.result["replies"]) == [1, BAD_REQUEST, INTERNAL, 4]
    assert node.broker_errors == {"publish": 1}


async def test_a_broadcast_waits_once() -> None:
    """Each channel of a broadcast has its own outcome, alone and in a batch."""
    body = {"channels": ["a", "b", "c"], "data": 1}
    for method, sent in (("broadcast", body), ("batch", {"commands": [{"broadcast": body}]})):
        made = Call()
        async with late_node() as (node, broker), trio.open_nursery() as nursery:
            nursery.start_soon(made.make, node, method, sent)
            await wait_all_tasks_blocked()
            assert broker.asked == ["1", "1", "1"]
            broker.answer(1)
            broker.answer(1, DOWN)
            broker.answer(1)
        whole = made.result["result"] if method == "broadcast" else made.result["replies"][0]
        first, second, third = whole.get("broadcast", whole)["responses"]
        assert (first["result"]["offset"], third["result"]["offset"]) == (1, 1)
        assert usual_error(second["error"]) == INTERNAL


@pytest.mark.parametrize("method", ["batch", "broadcast"])
async def test_events_in_flight_are_bounded(method: str) -> None:
    """A call has at most 4,096 events that wait for their answers."""
    count = IN_FLIGHT + 10
    body: dict[str, Any] = {"commands": publishing(*range(count))}
    if method == "broadcast":
        body = {"channels": ["c"] * count, "data": 1}
    made = Call()
    async with late_node() as (node, broker), trio.open_nursery() as nursery:
        nursery.start_soon(made.make, node, method, body)
        while len(broker.open) < IN_FLIGHT:
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert len(broker.open) == IN_FLIGHT
        while not made.ended():
            broker.answer()
            await wait_all_tasks_blocked()
    assert len(broker.asked) == count
    assert node.broker_errors == {}


@pytest.mark.parametrize("method", ["batch", "broadcast"])
async def test_a_call_waits_for_one_timeout(method: str, autojump_clock: MockClock) -> None:
    """An engine that hangs costs a call the publish timeout, and not once for each event."""
    body: dict[str, Any] = {"commands": publishing(*range(100))}
    if method == "broadcast":
        body = {"channels": ["c"] * 100, "data": 1}
    made = Call()
    async with late_node(publish_timeout=3) as (node, broker):
        start = trio.current_time()
        await made.make(node, method, body)
        assert trio.current_time() - start == pytest.approx(3)
    found = made.result.get("replies") or made.result["result"]["responses"]
    assert [usual_error(one["error"]) for one in found] == [INTERNAL] * 100
    assert node.broker_errors == {"publish": 100}
    assert node.refused == 0
    assert len(broker.asked) == 100


async def test_a_stream_does_not_wait_for_answers() -> None:
    """Its lines are submitted as they come; the summary waits, and counts what is settled."""
    made = Call()
    async with late_node() as (node, broker), trio.open_nursery() as nursery:
        stream = EventStream(node, 100)
        await stream.feed(lines(1, 2, 3))
        assert broker.asked == ["1", "2", "3"]
        broker.answer(2)
        await stream.feed(lines(4))
        assert (stream._accepted, len(stream._open)) == (2, 2)
        await stream.end()
        nursery.start_soon(made.end, stream)
        await wait_all_tasks_blocked()
        assert not made.ended()
        broker.answer(1, ReplyError(ErrorCode.BAD_REQUEST))
        broker.answer()
    errors = [{"line": 3, "error": BAD_REQUEST}]
    assert (made.status, made.result) == (200, {"accepted": 3, "failed": 1, "errors": errors})


async def test_lines_in_flight_are_bounded() -> None:
    """With 4,096 lines that are not answered a stream takes no more, and its sender waits."""
    async with late_node() as (node, broker), trio.open_nursery() as nursery:
        stream = EventStream(node, 100)
        nursery.start_soon(stream.feed, lines(*range(IN_FLIGHT + 10)))
        while len(broker.open) < IN_FLIGHT:
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert len(broker.open) == IN_FLIGHT
        broker.answer(1)
        await wait_all_tasks_blocked()
        assert len(broker.asked) == IN_FLIGHT + 1
        broker.answer()
    assert len(broker.asked) == IN_FLIGHT + 10


async def test_a_stream_stops_at_the_first_failure() -> None:
    """503 and the first line that the engine failed at, though lines behind it were published."""
    async with late_node() as (node, broker):
        stream = EventStream(node, 100)
        await stream.feed(b"\n" + lines(1, 2, 3, 4))
        broker.answer(1)
        broker.answer(1, DOWN)
        broker.answer(1)
        broker.answer(1, DOWN)
        stopped = [stream.stopped]
        await stream.feed(lines(5))
        stopped.append(stream.stopped)
        assert stopped == [False, True]
        await stream.feed(lines(6))
        assert broker.asked == ["1", "2", "3", "4", "5"]
        broker.answer()
        answer = await stream.answer()
    assert answer.status == 503
    told = msgspec.json.decode(answer.body)
    assert told["result"] == {"accepted": 3, "failed": 0, "errors": [], "stopped_at": 3}
    assert usual_error(told["error"]) == INTERNAL


async def test_a_stream_waits_for_one_timeout(autojump_clock: MockClock) -> None:
    """An engine that hangs holds up the summary for the publish timeout once."""
    made = Call()
    async with late_node(publish_timeout=3) as (node, _):
        stream = EventStream(node, 100)
        await stream.feed(lines(*range(50)))
        start = trio.current_time()
        await made.end(stream)
        assert trio.current_time() - start == pytest.approx(3)
    assert (made.status, made.result["accepted"], made.result["stopped_at"]) == (503, 0, 1)


class Refusing(LateAnswers):
    """A broker that always has room, and refuses all the same."""

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Answer[Outcome]:
        raise trio.WouldBlock

    async def wait_room(self) -> None:
        """Return without a checkpoint."""

    def announce(self, announcement: Announcement) -> None:
        raise trio.WouldBlock


async def test_a_broker_that_refuses_for_ever_stalls_nobody() -> None:
    """Each turn of a publisher lets others run, and all turns together have one deadline."""
    options = NodeOptions(
        publish_timeout=0.2, channel=ChannelOptions(join_leave=True, force_push_join_leave=True)
    )
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.sleep(0.01)
            turns += 1

    with trio.fail_after(5):
        async with (
            open_test_node(options, broker=Refusing()) as node,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(others)
            with pytest.raises(IntakeFullError):
                await node.publish(Publication("c", b"1"))
            answer = await call(node, "publish", b'{"channel":"c","data":1}')
            assert answer.status == 503
            async with talking(node) as talk:
                await talk.subscribe()
                await trio.sleep(0.6)
            assert node.broker_errors["announce"] == 1
            assert turns > 20
            nursery.cancel_scope.cancel()
