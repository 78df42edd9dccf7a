"""Events of a node's runs, and those that one node tells for all."""

from __future__ import annotations

import platform
from functools import partial
from typing import Any

import httpx
import trio
from trio.testing import MockClock

from repeater.access.grants import Caller
from repeater.config import Settings
from repeater.errors import CONNECTION_CLOSED
from repeater.workers.members import Callers
from tests.event_receivers import Receiver, opened


def caller(client: str) -> Caller:
    return Caller(client=client, user="ann", transport="websocket")


def told(receiver: Receiver) -> list[tuple[str, Any, str]]:
    """Run, number and client of each event."""
    return [
        (batch["run"], one.get("seq"), one.get("client", ""))
        for batch in receiver.batches
        for one in batch["events"]
    ]


async def test_a_batch_names_its_node(autojump_clock: MockClock) -> None:
    """Each batch has the node's name and the run."""
    receiver = Receiver()
    async with opened(receiver, node="web-1_8000", run="r1") as events:
        events.channel_occupied("a")
    (batch,) = receiver.batches
    assert (batch["node"], batch["run"], batch["events"][0]["id"]) == ("web-1_8000", "r1", "r1-1")


async def test_changes_of_a_channel_have_growing_numbers(autojump_clock: MockClock) -> None:
    """The later event of a channel has the larger `seq`, whatever the clock says."""
    receiver = Receiver()
    async with opened(receiver) as events:
        for _ in range(100):
            events.channel_occupied("a")
            events.channel_vacated("a")
    numbers = [one["seq"] for one in receiver.events]
    assert numbers == sorted(set(numbers))


async def test_a_batch_is_of_one_run(autojump_clock: MockClock) -> None:
    """A new run begins in a batch of its own, behind what waits, and a refused batch keeps its."""
    receiver = Receiver()
    receiver.refusals = [httpx.Response(500)] * 2
    async with opened(receiver, run="r1", event_delay=1) as events:
        events.connected(caller("1"))
        events.connected(caller("2"))
        await trio.sleep(1.1)
        events.disconnected(caller("2"), CONNECTION_CLOSED)
        events.begin_run("r1.2")
        assert not events.knows("1")
        events.connected(caller("1"))
    assert told(receiver) == [
        ("r1", 1, "1"), ("r1", 1, "2"), ("r1", 2, "2"), ("r1.2", 1, "1"),
    ]  # fmt: skip
    assert len({request.content for request in receiver.requests[:3]}) == 1


async def test_two_runs_begin_before_one_is_told(autojump_clock: MockClock) -> None:
    """A run without events leaves no batch."""
    receiver = Receiver()
    async with opened(receiver, run="r1") as events:
        events.connected(caller("1"))
        events.begin_run("r2")
        events.begin_run("r3")
        events.connected(caller("1"))
        events.begin_run("r4")
    assert told(receiver) == [("r1", 1, "1"), ("r3", 1, "1")]


async def test_a_new_run_knows_no_connection(autojump_clock: MockClock) -> None:
    """Until a connection is told anew nothing else is told of it."""
    receiver = Receiver()
    async with opened(receiver, run="r1") as events:
        events.connected(caller("1"))
        events.begin_run("r2")
        assert not events.knows("1")
        events.subscribed(caller("1"), "a")
        events.connected(caller("1"))
        events.subscribed(caller("1"), "b")
        assert events.knows("1")
    assert told(receiver) == [("r1", 1, "1"), ("r2", 1, "1"), ("r2", 2, "1")]


async def test_dropping_follows_the_runs(autojump_clock: MockClock) -> None:
    """What a full queue keeps has the run in which it happened."""
    receiver = Receiver()
    async with opened(receiver, run="r1", event_queue=3, event_delay=1) as events:
        for number in range(3):
            events.connected(caller(str(number)))
        events.begin_run("r2")
        for number in range(2):
            events.connected(caller(str(number)))
    assert told(receiver) == [("r1", 1, "2"), ("r2", 1, "0"), ("r2", 1, "1")]


async def test_clients_that_are_told_anew_wait_for_room(autojump_clock: MockClock) -> None:
    """However many they are, none is dropped, and each is told as it is then."""
    receiver = Receiver()
    async with opened(receiver, run="r1", event_queue=20, event_batch=10, event_delay=1) as events:
        callers = Callers(events)
        for number in range(100):
            callers.connected(caller(str(number)))
            callers.subscribed(caller(str(number)), "a")
            await trio.sleep(0.5)
        events.begin_run("r2")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(callers.tell_again, events.knows, events.wait_room)
            await trio.sleep(1.5)
            callers.disconnected(caller("99"), CONNECTION_CLOSED)
            callers.subscribed(Caller(client="98", user="newer", transport="websocket"), "a")
    assert events.statistics().dropped == 0
    anew = [one for one in told(receiver) if one[0] == "r2"]
    assert anew == [("r2", seq, f"{one}") for one in range(99) for seq in (1, 2)]
    assert (receiver.events[-1]["client"], receiver.events[-1]["user"]) == ("98", "newer")


SEQ = 1_700_000_000_123_456


async def test_events_that_are_kept_until_they_are_accepted(autojump_clock: MockClock) -> None:
    """Whoever keeps an event learns of its acceptance; noted once more it is told once."""
    receiver = Receiver()
    receiver.refusals = [httpx.Response(500)] * 20
    done: list[str] = []
    async with opened(receiver) as events:
        for name in ("first", "again"):
            events.channel_changed("channel_occupied", "a", SEQ, partial(done.append, name))
        await trio.sleep(0.15)
        assert receiver.requests
        assert not done
        await trio.sleep(1_000)
        assert done == ["first", "again"]
    assert receiver.events == [
        {"id": f"a:{SEQ}", "time": SEQ // 1_000, "event": "channel_occupied", "seq": SEQ,
         "channel": "a"},
    ]  # fmt: skip


async def test_a_lost_node(autojump_clock: MockClock) -> None:
    """The event names the node and its run, and has one id whoever tells it."""
    receiver = Receiver()
    done: list[str] = []
    async with opened(receiver) as events:
        events.node_lost("web-2", "r7", partial(done.append, "lost"))
    (event,) = receiver.events
    assert {**event, "time": 0} == {
        "id": "r7-lost", "time": 0, "event": "node_lost", "node": "web-2", "run": "r7",
    }  # fmt: skip
    assert done == ["lost"]


async def test_events_that_nobody_will_get_are_not_kept(autojump_clock: MockClock) -> None:
    """An event of a kind that is not wanted, or that is dropped, needs no keeping."""
    receiver = Receiver()
    done: list[str] = []
    wanted = frozenset({"node_lost"})
    async with opened(receiver, events=wanted, event_queue=1, event_delay=60) as events:
        events.channel_changed("channel_vacated", "a", SEQ, partial(done.append, "a"))
        events.node_lost("web-2", "r7", partial(done.append, "r7"))
        events.node_lost("web-3", "r8", partial(done.append, "r8"))
        assert done == ["a", "r7"]
        assert events.statistics().dropped == 1


async def test_an_end_keeps_what_was_not_accepted(autojump_clock: MockClock) -> None:
    """What the end could not deliver stays kept, so that another node tells it."""
    receiver = Receiver()
    receiver.refusals = [httpx.Response(500)] * 100
    done: list[str] = []
    async with opened(receiver) as events:
        events.node_lost("web-2", "r7", partial(done.append, "lost"))
    assert not done


def test_the_names_of_nodes() -> None:
    """By default a node is named by its host and where it listens; `node_name` wins."""
    host = platform.node()
    assert Settings(port=9_000).node == f"{host}_9000"
    assert Settings(listen=("unix:/run/a.sock",)).node == f"{host}_unix:/run/a.sock"
    assert Settings(node_name="blue").node == "blue"
