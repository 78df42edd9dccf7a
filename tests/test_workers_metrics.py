"""With workers, one scrape of any of them gives the metrics of all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.errors import FORCE_DISCONNECT
from repeater.node import Node
from repeater.publication import Publication
from repeater.serving.application import create_app
from repeater.supervision.metrics import UP
from repeater.supervision.questions import ServerQuestions
from repeater.supervision.server import make_supervision
from repeater.testing import MemoryTransport, connect, open_test_node
from repeater.web.metrics import ONCE, create_registry
from repeater.web.scrape import scrape
from tests.members import OPTIONS, Workers, open_workers, user_on, worker

PAGE = (Path(__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
CLOSED = "connection closed"
Labels = tuple[tuple[str, str], ...]


async def scraped(node: Node) -> dict[tuple[str, Labels], float]:
    """Every sample of a scrape, by its name and labels."""
    text = generate_latest(await scrape(node, create_registry(node))).decode()
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert text.count("# TYPE ") == len(set(re.findall(r"# TYPE (\S+)", text)))
    return found


def of(number: int | str, **more: str) -> Labels:
    return tuple(sorted({"worker": str(number), **more}.items()))


def end(workers: Workers, number: int) -> None:
    """A worker is killed: the supervisor learns nothing more from it."""
    member = workers.nodes[number].control.me
    del workers.group.running[member.id]
    assert workers.group.supervision is not None
    workers.group.supervision.left(member)


async def test_a_series_for_each_worker(autojump_clock: MockClock) -> None:
    """Whichever is scraped; what must not be added comes once, and users and channels exactly."""
    async with (
        open_workers(2, OPTIONS) as workers,
        user_on(workers.nodes[0]) as (first, _),
        user_on(workers.nodes[1]) as (second, _),
        connect(workers.nodes[1], MemoryTransport(), ["news", "sport"]),
    ):
        first.subscribe("news")
        second.subscribe("news")
        await workers.nodes[0].publish(Publication("news", b"1"))
        await workers.nodes[1].publish(Publication("news", b"1"))
        await wait_all_tasks_blocked()
        seen = await scraped(workers.nodes[0])
        assert seen.keys() == (await scraped(workers.nodes[1])).keys()
        kind = {"protocol": "centrifuge-json-asgi", "transport": "memory"}
        assert seen["repeater_connections", of(1, **kind)] == 1
        assert seen["repeater_connections", of(2, **kind)] == 1
        assert seen["repeater_subscriptions", of(1)] == 1
        assert seen["repeater_subscriptions", of(2)] == 3
        assert seen["repeater_deliveries_total", of(1)] == 1
        assert seen["repeater_deliveries_total", of(2)] == 2
        assert seen["repeater_batch_events_bucket", of(2, le="1.0")] == 1
        assert seen["repeater_users", ()] == 1
        assert seen["repeater_channels", ()] == 2
        assert seen["repeater_broker_up", ()] == 1
        assert (seen[UP, of(1)], seen[UP, of(2)]) == (1, 1)
        assert seen["process_open_fds", of("supervisor")] == 7
        assert seen["process_resident_memory_bytes", of(1)] > 1_000_000
        for name, labels in seen:
            has = "worker" in dict(labels)
            assert has != name.startswith(ONCE), name


async def test_both_formats_are_well_formed(autojump_clock: MockClock) -> None:
    """Prometheus's own strict parser reads the merged text."""
    async with open_workers(2) as workers, connect(workers.nodes[1], MemoryTransport(), ["a"]):
        await workers.nodes[1].publish(Publication("a", b"1"))
        await wait_all_tasks_blocked()
        end(workers, 1)
        registry = await scrape(workers.nodes[0], create_registry(workers.nodes[0]))
        text = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call]
        families = {family.name for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
        assert {"repeater_deliveries", "repeater_fanout_seconds", UP} <= families
        workers.group.running[workers.nodes[1].id] = workers.controls[1]


async def test_counters_never_fall(autojump_clock: MockClock) -> None:
    """A worker that was killed, and its successor of the same number, are one series."""
    deliveries = ("repeater_deliveries_total", of(2))
    buckets = ("repeater_fanout_seconds_bucket", of(2, le="+Inf"))
    async with open_workers(2, OPTIONS) as workers:
        async with connect(workers.nodes[1], MemoryTransport(), ["news"]):
            for _ in range(3):
                await workers.nodes[1].publish(Publication("news", b"1"))
                await wait_all_tasks_blocked()
            before = await scraped(workers.nodes[0])
        end(workers, 1)
        gone = await scraped(workers.nodes[0])
        assert gone[deliveries] == before[deliveries] == 3
        assert gone[buckets] == before[buckets] == 3
        assert ("repeater_subscriptions", of(2)) not in gone
        assert gone[UP, of(2)] == 0
        successor = workers.group.control()
        successor.me = worker(2, start=2)
        async with open_test_node(control=successor) as node:
            create_app(node)  # which has a node give its metrics
            async with connect(node, MemoryTransport(), ["news"]):
                await node.publish(Publication("news", b"1"))
                await wait_all_tasks_blocked()
                after = await scraped(workers.nodes[0])
                assert after[deliveries] == 4
                assert after[buckets] == 4
                assert after["repeater_subscriptions", of(2)] == 1
                assert after[UP, of(2)] == 1
        workers.group.running[workers.nodes[1].id] = workers.controls[1]


async def test_a_worker_that_ends_in_order_loses_nothing(autojump_clock: MockClock) -> None:
    """It tells its last counts, also those that no scrape has seen."""
    async with open_workers(2, OPTIONS) as workers:
        other = workers.group.control()
        async with open_test_node(control=other) as node:
            create_app(node)
            async with connect(node, MemoryTransport(), ["news"]):
                await node.publish(Publication("news", b"1"))
                await wait_all_tasks_blocked()
        seen = await scraped(workers.nodes[0])
        assert seen["repeater_deliveries_total", of(3)] == 1
        assert seen["repeater_connections_ended_total", of(3, code="3000", reason=CLOSED)] == 1
        (server,) = await workers.nodes[0].summaries()
        assert server.counts.done["deliveries"] == 1


async def test_a_silent_worker_is_down(autojump_clock: MockClock) -> None:
    """Its counters stay, its gauges are unknown, and the scrape does not wait for a second."""
    async with open_workers(2, OPTIONS) as workers, user_on(workers.nodes[1]) as (client, _):
        await scraped(workers.nodes[0])
        workers.fall_silent(1)
        seen = await scraped(workers.nodes[0])
        assert (seen[UP, of(1)], seen[UP, of(2)]) == (1, 0)
        assert seen["repeater_connections_opened_total", of(2)] == 1
        assert ("repeater_subscriptions", of(2)) not in seen
        assert seen["repeater_users", ()] == 1
        client.disconnect(FORCE_DISCONNECT)


async def test_a_silent_supervisor(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scrape fails: half of the truth would look like a loss of workers."""

    async def sleep(*_: object) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async with open_workers(2) as workers:
        client = create_app(workers.nodes[0]).test_client()
        assert (await client.get("/metrics")).status_code == 200
        monkeypatch.setattr(ServerQuestions, "carry_out", sleep)
        answer = await client.get("/metrics")
        assert answer.status_code == 503
        assert b"did not answer" in await answer.get_data()


async def test_without_workers_nothing_is_labelled() -> None:
    """A server of one process shows what it always has."""
    async with open_test_node() as node:
        assert not [labels for _, labels in await scraped(node) if "worker" in dict(labels)]


def test_the_page_says_what_has_no_label() -> None:
    """Each metric that a server has once is marked on the page, and no other is."""
    rows = re.findall(r"^\| `(repeater_[^`{]+)[^`]*` \| (\w+)(, once)? \|", PAGE, re.MULTILINE)
    assert [name for name, _, once in rows if once] == [
        name for name, _, _ in rows if name.startswith(ONCE)
    ]


async def test_a_supervision_is_put_together() -> None:
    """With everything that a worker may ask."""
    questions = make_supervision(lambda: (1, 2))
    answered = {"summary", "metrics", "take_place", "divide_places", "counters"}
    assert answered <= set(questions._answerers)
