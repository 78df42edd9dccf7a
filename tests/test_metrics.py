"""`/metrics`: the numbers are right, the text is Prometheus's, the page says what there is."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
import trio_websocket
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant
from repeater.brokers.contract import EngineStatistics
from repeater.brokers.memory import MemoryBroker
from repeater.clients.statistics import OutgoingStatistics
from repeater.config import load_settings
from repeater.errors import NO_PONG, BrokerError, Disconnect, IntakeFullError
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import Publication, StreamPosition
from repeater.serving.server import Server, open_server
from repeater.supervision.metrics import UP
from repeater.testing import MemoryTransport, StallingTransport, connect, open_test_node
from repeater.web.metrics import (
    ServerCollector,
    create_registry,
    engine_metrics,
    outgoing_metrics,
)
from tests.deadlines import LOOP_ANSWERS

PAGE = Path(__file__).parent.parent / "docs" / "operations.md"
SECRET = "scrape-me-if-you-can"
# Its last byte in UTF-8 is one that `str.strip` takes for a blank.
FOREIGN = "p\xe4ssw\xf6rd-\xe0"
CALLBACKS = {  # an address at which nobody is, of a server that has nothing to say
    "rpc_url": "http://127.0.0.1:1/rpc",
    "event_url": "http://127.0.0.1:1/events",
    "events": ["channel_occupied"],
    "secret": "x" * 32,
}

Samples = dict[tuple[str, tuple[str, ...]], float]


class FailingBroker(MemoryBroker):
    """A back end that is down."""

    def submit(self, *_: object, **__: object) -> StreamPosition | None:
        raise BrokerError("refused")

    def outage(self) -> str:
        return "connection refused"


def samples(text: str) -> Samples:
    """Every sample by its name and the values of its labels, in the order of their names."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(node: Node) -> Samples:
    return samples(generate_latest(create_registry(node)).decode())


async def test_numbers_of_a_scenario(autojump_clock: MockClock) -> None:
    """What happened on a node is what its metrics say."""
    options = NodeOptions(channel=ChannelOptions(history_size=0), outbox_limit=65_536)
    async with (
        open_test_node(options) as node,
        connect(node, MemoryTransport(), ["a", "b"]) as one,
        connect(node, MemoryTransport(), ["a"]),
        connect(node, StallingTransport(), ["b"]),
    ):
        for number in range(3):
            node._intake.put_nowait(Publication("a", b"%d" % number))
        await wait_all_tasks_blocked()
        await node.publish(Publication("b", b"1" * 50))
        await wait_all_tasks_blocked()
        one.cut(NO_PONG)
        seen = scrape(node)
        assert seen["repeater_connections", ("plain-asgi", "memory")] == 1
        assert seen["repeater_connections", ("plain-asgi", "stalling")] == 1
        assert seen["repeater_connections_opened_total", ()] == 3
        assert seen["repeater_connections_ended_total", ("3012", "no pong")] == 1
        assert seen["repeater_channels", ()] == 2
        assert seen["repeater_subscriptions", ()] == 2
        assert seen["repeater_publications_total", ()] == 4
        assert seen["repeater_deliveries_total", ()] == 3 * 2 + 2
        assert seen["repeater_delivered_bytes_total", ()] == 3 * 2 + 2 * 50
        assert seen["repeater_backlogged_clients", ()] == 1
        assert seen["repeater_backlog_bytes", ()] == 50
        assert seen["repeater_intake_events", ()] == 0
        assert seen["repeater_batch_events_count", ()] == 2
        assert seen["repeater_batch_events_sum", ()] == 4
        assert seen["repeater_batch_events_bucket", ("1.0",)] == 1
        assert seen["repeater_batch_events_bucket", ("4.0",)] == 2
        assert seen["repeater_batch_events_bucket", ("+Inf",)] == 2
        assert seen["repeater_fanout_seconds_count", ()] == 2
        assert seen["repeater_publish_to_write_seconds_count", ()] == 4
        assert 0 < seen["repeater_fanout_seconds_sum", ()] < 5
        assert seen["repeater_publish_to_write_seconds_sum", ()] > 0
        assert seen["repeater_draining", ()] == 0
        assert seen["repeater_broker_up", ()] == 1


async def test_users_are_counted_once() -> None:
    """A user with two connections counts once, and the anonymous user does not count."""
    async with (
        open_test_node() as node,
        connect(node, MemoryTransport()) as one,
        connect(node, MemoryTransport()) as two,
        connect(node, MemoryTransport()) as three,
    ):
        one.identify(ConnectionGrant("42"))
        two.identify(ConnectionGrant("42"))
        three.identify(ConnectionGrant())
        assert scrape(node)["repeater_users", ()] == 1


async def test_faults_are_counted() -> None:
    """A back end that fails, and a publish that is told to try later."""
    async with open_test_node(broker=FailingBroker()) as node:
        with pytest.raises(BrokerError):
            await node.publish(Publication("a", b"1"))
        assert scrape(node)["repeater_broker_errors_total", ("publish",)] == 1
        assert scrape(node)["repeater_broker_up", ()] == 0
    async with open_test_node() as node:
        await node.shut_down()
        with pytest.raises(IntakeFullError):
            await node.publish(Publication("a", b"1"))
        seen = scrape(node)
        assert seen["repeater_publications_refused_total", ()] == 1
        assert seen["repeater_draining", ()] == 1


async def test_an_applications_reason_is_no_label() -> None:
    """A code that is not ours has one label, whatever texts the application gives it."""
    async with open_test_node() as node:
        for number in range(3):
            async with connect(node, MemoryTransport()) as client:
                client.cut(Disconnect(4_000, f"text {number}"))
        seen = scrape(node)
    ended = {labels: count for (name, labels), count in seen.items() if "ended_total" in name}
    assert ended == {("4000", "application"): 3}


async def test_lag_of_the_loop_is_seen(autojump_clock: MockClock) -> None:
    """A tick that comes late says by how much."""
    async with open_test_node() as node:
        await trio.sleep(0.5)
        autojump_clock.jump(4)
        await wait_all_tasks_blocked()
        assert node.statistics().loop_lag == pytest.approx(3.5)


OUTGOING = OutgoingStatistics(
    up=True,
    leading=True,
    under_way=0,
    rows=0,
    oldest=0.0,
    snapshot=0.0,
    moved=0,
    refused=0,
    missed=0,
    losses=0,
    warnings=[],
)


def labels_of(family: Metric) -> tuple[str, ...]:
    """The names of its labels, whether it has samples or not."""
    labels: tuple[str, ...] = vars(family).get("_labelnames", ())
    return labels


def test_every_metric_is_on_the_page(tmp_path: Path) -> None:
    """docs/operations.md has exactly one row for each of our metrics, and no other row."""

    async def names() -> list[str]:
        settings = load_settings(dev=True, port=0, callbacks=CALLBACKS, data_dir=str(tmp_path))
        async with open_server(settings) as server:
            collector = ServerCollector(server.node, server.acceptor.statistics)
            return [
                family.name
                + {"counter": "_total", "info": "_info"}.get(family.type, "")
                + ("{" + ",".join(labels) + "}" if (labels := labels_of(family)) else "")
                for family in (
                    *collector.collect(),
                    *engine_metrics(EngineStatistics(1, 1, {})),
                    *outgoing_metrics(OUTGOING),
                )
            ]

    page = PAGE.read_text(encoding="utf-8")
    # Lists, not sets: a metric that is described twice must show.
    on_the_page = re.findall(r"^\| `(repeater_[^`]+)` \|", page, re.MULTILINE)
    of_workers = f"{UP}{{worker}}"
    assert sorted(on_the_page) == sorted([*trio.run(names), of_workers])


@asynccontextmanager
async def running(**settings: object) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server, and an HTTP client of it."""
    with trio.fail_after(LOOP_ANSWERS):
        async with open_server(load_settings(port=0, **settings)) as server:
            url = f"http://127.0.0.1:{server.port}"
            async with httpx.AsyncClient(base_url=url) as client:
                yield server, client


async def test_page_of_a_running_server() -> None:
    """Text and OpenMetrics both parse, with the acceptor's numbers and the process's."""
    async with running(dev=True) as (server, client):
        url = f"ws://127.0.0.1:{server.port}/ws?channel=news"
        async with trio_websocket.open_websocket_url(url) as subscriber:
            await client.post("/api/publish", json={"channel": "news", "data": 1})
            await subscriber.get_message()
            answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        seen = samples(answer.text)
        assert seen["repeater_connections", ("plain", "websocket")] == 1
        assert seen["repeater_deliveries_total", ()] == 1
        assert seen["repeater_acceptor_accepted_total", ()] == 2
        assert seen["repeater_acceptor_open", ()] == 2
        assert seen["repeater_tokens_total", ("proven",)] == 0
        assert seen["process_resident_memory_bytes", ()] > 1_000_000
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        answer = await client.get("/metrics", headers=accept)
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        families = {family.name for family in parse_openmetrics(answer.text)}  # type: ignore[no-untyped-call]
        assert {"repeater_deliveries", "repeater_fanout_seconds"} <= families


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        ({}, {}, 401),
        ({}, {"Authorization": "Bearer"}, 401),
        ({"metrics_open": True}, {}, 200),
        ({"metrics_token": SECRET}, {}, 401),
        ({"metrics_token": SECRET}, {"Authorization": f"Bearer {SECRET}x"}, 401),
        ({"metrics_token": SECRET}, {"Authorization": f"Bearer {SECRET[:-1]}"}, 401),
        ({"metrics_token": SECRET}, {"Authorization": f"Bearer {SECRET[:1]}"}, 401),
        ({"metrics_token": SECRET}, {"Authorization": "Bearer"}, 401),
        ({"metrics_token": SECRET}, {"Authorization": f"Bearer {SECRET} {SECRET}"}, 401),
        ({"metrics_token": SECRET}, {"Authorization": f"apikey {SECRET}"}, 401),
        ({"metrics_token": SECRET}, {"X-API-Key": SECRET}, 401),
        ({"metrics_token": SECRET}, {"Authorization": f"Bearer {SECRET}"}, 200),
        ({"metrics_token": FOREIGN}, {"Authorization": f"Bearer {FOREIGN}"}, 200),
        ({"metrics_token": FOREIGN}, {"Authorization": f"Bearer {FOREIGN[:-1]}"}, 401),
        ({"api_key": SECRET}, {}, 401),
        ({"api_key": SECRET}, {"Authorization": f"Bearer {SECRET}"}, 401),
        ({"api_key": SECRET}, {"X-API-Key": SECRET}, 200),
        ({"api_key": SECRET}, {"Authorization": f"apikey {SECRET}"}, 200),
    ],
)
async def test_who_may_read(
    settings: dict[str, object], headers: dict[str, str], status: int
) -> None:
    """Closed by default; open to its token, to the API key, and to all where that is set."""
    async with running(**settings) as (_, client):
        given = httpx.Headers(headers, encoding="utf-8")
        answer = await client.get("/metrics", headers=given)
        assert answer.status_code == status
        assert bool(answer.text) == (status == 200)
        assert SECRET not in answer.text
        publish = {"channel": "a", "data": 1}
        with_token = {"Authorization": f"Bearer {SECRET}"}
        answer = await client.post("/api/publish", json=publish, headers=with_token)
        assert answer.status_code == 401, "the metrics' token publishes nothing"
