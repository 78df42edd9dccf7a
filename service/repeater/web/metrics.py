"""The metrics of `/metrics`: counters of the node, the acceptor and the verifier, read on request.

Nothing is counted here. No label has values that a client or a publisher chooses, so neither
channels nor users are labels. docs/operations.md lists every name; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from repeater import __version__
from repeater.access.tokens.replaceable import ReplaceableVerifier
from repeater.backend.contract import BackendStatistics, EventStatistics
from repeater.brokers.contract import EngineStatistics, JournalStatistics
from repeater.causes import Cause
from repeater.clients.statistics import NodeStatistics, OutgoingStatistics
from repeater.errors import REASONS
from repeater.histogram import HistogramStatistics
from repeater.log_output import lost_lines
from repeater.node import Node

if TYPE_CHECKING:
    from repeater.access.tokens.verifier import VerifierStatistics
    from repeater.front.accept import AcceptorStatistics

ONCE_ALWAYS: Final = (
    *("repeater_build", "repeater_denials"),
    *("repeater_pg_outgoing", "repeater_pg_oldest", "repeater_pg_xmin"),
)
"""The beginnings of the names of metrics that a server has once, also if each of its workers has a
broker of its own: of what all nodes have in common."""
ONCE: Final = (
    *ONCE_ALWAYS,
    *("repeater_users", "repeater_channels"),
    *("repeater_history_", "repeater_idempotency_", "repeater_broker_up"),
    *("repeater_events_", "repeater_event_batches"),
)
"""Those of a server whose workers share a broker: of broker and stores, and of its events, too."""

_APPLICATION = "application"  # the reason shown for an application's own code


class ServerCollector(Collector):
    """Reads the statistics at each scrape. Lives inside the application."""

    def __init__(self, node: Node, acceptor: Callable[[], AcceptorStatistics] | None) -> None:
        self._node = node
        self._acceptor = acceptor

    def collect(self) -> Iterator[Metric]:
        """Yield all our metrics, read at the same moment."""
        yield InfoMetricFamily("repeater_build", "The version that runs.", {"version": __version__})
        statistics = self._node.statistics()
        yield from _connections(statistics)
        yield from _channels(statistics)
        yield from _fanout(statistics)
        yield from _health(statistics)
        if self._acceptor is not None:
            yield from _acceptor(self._acceptor())
        verifier = self._node.verifier
        if isinstance(verifier, ReplaceableVerifier) and (tokens := verifier.statistics()):
            yield from _tokens(tokens)
        if statistics.backend is not None:
            yield from _callbacks(statistics.backend)
        if statistics.events is not None:
            yield from _events(statistics.events)
        if statistics.outgoing is not None:
            yield from outgoing_metrics(statistics.outgoing)


def create_registry(
    node: Node, acceptor: Callable[[], AcceptorStatistics] | None = None
) -> CollectorRegistry:
    """Make a registry of our and the process's metrics; Prometheus's default one is not touched."""
    registry = create_process_registry()
    registry.register(ServerCollector(node, acceptor))
    return registry


def create_process_registry() -> CollectorRegistry:
    """Make a registry of the process's metrics alone."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def _connections(seen: NodeStatistics) -> Iterator[Metric]:
    now = GaugeMetricFamily(
        "repeater_connections", "Clients connected now.", labels=("transport", "protocol")
    )
    for kind, clients in seen.kinds.items():
        now.add_metric(kind, clients)
    yield now
    yield _count("repeater_connections_opened", "Clients accepted so far.", seen.connected)
    ended = CounterMetricFamily(
        "repeater_connections_ended",
        "Clients that left or were ended, by disconnect code.",
        labels=("code", "reason"),
    )
    for code, clients in sorted(seen.ended.items()):
        ended.add_metric((str(code), REASONS.get(code, _APPLICATION)), clients)
    yield ended
    limited = CounterMetricFamily(
        "repeater_limited",
        "Connections, commands and subscriptions refused, by limit or denial.",
        labels=("limit",),
    )
    for limit, times in sorted(seen.limited.items()):
        limited.add_metric((limit,), times)
    yield limited
    refusals = CounterMetricFamily(
        "repeater_refusals", "Requests, commands and calls refused, by cause.", labels=("cause",)
    )
    for cause in Cause:
        refusals.add_metric((cause,), seen.refusals.get(cause, 0))
    yield refusals
    yield _gauge("repeater_denials", "Blocked users and revoked tokens kept.", seen.denials)
    yield _gauge("repeater_members", "Nodes known here, this one included.", seen.members)
    yield _gauge("repeater_users", "Different users connected now.", seen.users)
    yield _gauge("repeater_backlogged_clients", "Clients with bytes waiting.", seen.backlogged)
    yield _gauge("repeater_backlog_bytes", "Bytes waiting for clients.", seen.backlog_bytes)


def _channels(seen: NodeStatistics) -> Iterator[Metric]:
    yield _gauge("repeater_channels", "Channels with a subscriber here.", seen.channels)
    yield _gauge(
        "repeater_subscriptions", "Subscriptions of clients and feeds.", seen.subscriptions
    )
    feeds = seen.feeds
    yield _gauge("repeater_feeds", "Feeds of the server's own process.", feeds.open)
    yield _gauge("repeater_feed_bytes", "Bytes waiting for feeds.", feeds.bytes)
    yield _count("repeater_feeds_behind", "Publications did not fit into a feed.", feeds.behind)
    yield _count("repeater_feeds_lost", "Feeds told of missing publications.", feeds.lost)
    gaps = "Gaps found in the streams that came from the broker."
    yield _count("repeater_gaps", gaps, seen.repeater.gaps)
    left_out = "Deliveries of binary publications to clients of JSON, which were left out."
    yield _count("repeater_left_out", left_out, seen.repeater.left_out)
    kept = seen.broker
    yield _gauge("repeater_history_channels", "Channels with offset and epoch here.", kept.streams)
    yield _gauge("repeater_history_bytes", "Bytes of publications kept.", kept.history_bytes)
    yield _count(
        "repeater_history_dropped",
        "Publications dropped early, because of history_bytes or history_disk_limit.",
        kept.dropped_publications,
    )
    yield _count(
        "repeater_history_forgotten",
        "Channels forgotten early, because of history_channels.",
        kept.forgotten_streams,
    )
    yield _gauge("repeater_idempotency_keys", "Idempotency keys kept.", kept.results)
    yield _count(
        "repeater_idempotency_dropped",
        "Idempotency keys forgotten early, because of idempotency_bytes.",
        kept.dropped_results,
    )
    if kept.journal is not None:
        yield from _journal(kept.journal)
    if kept.engine is not None:
        yield from engine_metrics(kept.engine)


def engine_metrics(seen: EngineStatistics) -> Iterator[Metric]:
    """The connections to an engine that nodes share."""
    up = GaugeMetricFamily(
        "repeater_engine_up", "1 while this half of the engine is there.", labels=("half",)
    )
    for half in ("commands", "bus"):
        up.add_metric((half,), float(half not in seen.down))
    yield up
    yield _gauge("repeater_engine_primaries", "Primaries of the engine.", seen.primaries)
    yield _gauge("repeater_engine_primaries_up", "Those that are there.", seen.up)
    losses = CounterMetricFamily(
        "repeater_engine_losses", "Primaries that were left, by the reason.", labels=("reason",)
    )
    for reason in ("commands", "bus", "role"):
        losses.add_metric((reason,), seen.losses.get(reason, 0))
    yield losses
    yield _gauge("repeater_engine_waiting", "Submissions that wait for a script.", seen.waiting)
    yield _count("repeater_engine_scripts", "Scripts sent for submissions.", seen.scripts)
    yield _gauge("repeater_engine_held_channels", "Channels whose events come.", seen.held)
    yield _count("repeater_engine_reads", "Streams read, as messages were missing.", seen.reads)
    yield _count("repeater_engine_forks", "Streams that were numbered twice.", seen.forks)
    yield _count("repeater_engine_ruptures", "Streams with publications lost.", seen.ruptures)
    foreign = CounterMetricFamily(
        "repeater_engine_foreign", "What no server has written.", labels=("where",)
    )
    for where in ("streams", "control", "presence"):
        foreign.add_metric((where,), seen.foreign.get(where, 0))
    yield foreign


def _journal(seen: JournalStatistics) -> Iterator[Metric]:
    """Yield the metrics of a history that is in a file."""
    yield _histogram("repeater_history_commit_seconds", "Time of a commit.", seen.commit_seconds)
    yield _count(
        "repeater_history_commit_failures", "Commits, and tries of the disk, failed.", seen.failures
    )
    yield _gauge("repeater_history_file_bytes", "Bytes of the file and its log.", seen.file_bytes)
    yield _gauge("repeater_history_used_bytes", "Bytes of the file in use.", seen.used_bytes)
    yield _gauge("repeater_history_waiting", "Submissions that wait for a commit.", seen.waiting)
    yield _gauge("repeater_history_lag_seconds", "How long the oldest has waited.", seen.lag)


def _fanout(seen: NodeStatistics) -> Iterator[Metric]:
    work = seen.repeater
    yield _count("repeater_publications", "Publications taken for fan-out.", work.publications)
    yield _count(
        "repeater_publications_refused", "Publishes refused, to be tried later.", seen.refused
    )
    yield _count("repeater_deliveries", "Publications given to subscribers.", work.deliveries)
    yield _count("repeater_delivered_bytes", "Bytes of deliveries, with framing.", work.bytes_out)
    yield _gauge("repeater_intake_events", "Events waiting for fan-out.", work.waiting)
    yield _gauge("repeater_intake_bytes", "Bytes of these events.", work.waiting_bytes)
    yield _gauge("repeater_intake_publishers", "Publishers that wait for room.", work.publishers)
    yield _histogram("repeater_batch_events", "Events in one batch.", work.batch_events)
    yield _histogram(
        "repeater_fanout_seconds", "Time to distribute one batch.", work.fanout_seconds
    )
    yield _histogram(
        "repeater_publish_to_write_seconds",
        "From the broker's hand-over to the end of fan-out, for each event.",
        work.publish_to_write_seconds,
    )


def _health(seen: NodeStatistics) -> Iterator[Metric]:
    errors = CounterMetricFamily(
        "repeater_broker_errors", "Failures of the broker or presence store.", labels=("operation",)
    )
    for operation, failures in sorted(seen.broker_errors.items()):
        errors.add_metric((operation,), failures)
    yield errors
    failed = CounterMetricFamily(
        "repeater_connection_failures",
        "Connections ended by an error of the server's own, by the place of the error.",
        labels=("place",),
    )
    for place, times in sorted(seen.failures.items()):
        failed.add_metric((place,), times)
    yield failed
    yield _gauge("repeater_broker_up", "1 while the broker is available.", not seen.outage)
    yield _gauge("repeater_draining", "1 while the node shuts down.", seen.draining)
    yield _gauge("repeater_loop_lag_seconds", "Lateness of the last tick.", seen.loop_lag)
    yield _count("repeater_log_lines_lost", "Lines of the log not written.", lost_lines())


def _acceptor(seen: AcceptorStatistics) -> Iterator[Metric]:
    yield _count("repeater_acceptor_accepted", "TCP connections accepted.", seen.accepted)
    yield _gauge("repeater_acceptor_open", "TCP connections open now.", seen.open)
    yield _count("repeater_acceptor_rejected", "Rejected for their first bytes.", seen.rejected)
    yield _count("repeater_acceptor_pauses", "Pauses without free descriptors.", seen.pauses)
    yield _count("repeater_api_requests", "API requests answered natively.", seen.rest.requests)
    yield _gauge("repeater_api_connections", "Connections of API requests.", seen.rest.open)
    pages = seen.handover
    yield _gauge("repeater_http_connections", "Connections behind Hypercorn.", pages.open)
    ended = CounterMetricFamily(
        "repeater_http_ended",
        "Connections and streams behind Hypercorn that were ended, by reason.",
        labels=("reason",),
    )
    for reason in ("flood", "stalled", "lost"):
        ended.add_metric((reason,), getattr(pages, reason))
    yield ended


def _tokens(seen: VerifierStatistics) -> Iterator[Metric]:
    outcomes = CounterMetricFamily(
        "repeater_tokens", "Tokens verified, by outcome.", labels=("outcome",)
    )
    for outcome in ("proven", "expired", "invalid", "unavailable"):
        outcomes.add_metric((outcome,), getattr(seen, outcome))
    yield outcomes
    sets = seen.key_sets
    yield _count("repeater_jwks_fetches", "Fetches of key sets.", sum(one.fetches for one in sets))
    yield _count("repeater_jwks_failures", "Failed fetches.", sum(one.failures for one in sets))


def outgoing_metrics(seen: OutgoingStatistics) -> Iterator[Metric]:
    """Yield the metrics of what transactions of a database publish."""
    name = "repeater_pg"
    yield _gauge(f"{name}_up", "1 while the database of outbox can be used.", seen.up)
    yield _gauge(f"{name}_leading", "1 on the node that takes what is published.", seen.leading)
    yield _gauge(f"{name}_in_flight", "Rows taken and not removed yet.", seen.under_way)
    yield _gauge(f"{name}_outgoing_rows", "Rows that wait, up to 10,000.", seen.rows)
    yield _gauge(f"{name}_oldest_seconds", "How long the oldest row has waited.", seen.oldest)
    yield _gauge(f"{name}_xmin_age_seconds", "Age of the oldest snapshot.", seen.snapshot)
    yield _count(f"{name}_moved", "Rows published and removed.", seen.moved)
    yield _count(f"{name}_refused", "Rows that can never be published.", seen.refused)
    yield _count(f"{name}_stragglers", "Rows that a look has missed.", seen.missed)
    yield _count(f"{name}_losses", "Sessions with the database that were lost.", seen.losses)


def _callbacks(seen: BackendStatistics) -> Iterator[Metric]:
    """Yield the metrics of the questions to the application's back end, by kind."""
    asked = CounterMetricFamily(
        "repeater_callbacks",
        "Questions to the back end, by outcome.",
        labels=("kind", "outcome"),
    )
    pending = GaugeMetricFamily(
        "repeater_callbacks_pending", "Questions under way or waiting.", labels=("kind",)
    )
    circuit = GaugeMetricFamily(
        "repeater_callback_circuit_open", "1 unless the circuit is closed.", labels=("kind",)
    )
    opened = CounterMetricFamily(
        "repeater_callback_circuit_opened", "How often the circuit opened.", labels=("kind",)
    )
    for kind, one in seen.endpoints.items():
        outcomes = {
            "answered": one.answered,
            "failed": one.failed - one.timeouts,
            "timeout": one.timeouts,
            "refused": one.refused,
            "crowded": one.crowded,
        }
        for outcome, questions in outcomes.items():
            asked.add_metric((kind, outcome), questions)
        pending.add_metric((kind,), one.under_way + one.waiting)
        circuit.add_metric((kind,), one.circuit != "closed")
        opened.add_metric((kind,), one.opened)
    yield from (asked, pending, circuit, opened)


def _events(seen: EventStatistics) -> Iterator[Metric]:
    yield _gauge("repeater_events_waiting", "Events that wait for the back end.", seen.waiting)
    yield _count("repeater_events_delivered", "Events that the back end took.", seen.delivered)
    yield _count("repeater_events_dropped", "Events lost to a full queue.", seen.dropped)
    yield _count("repeater_event_batches", "Tries to deliver a batch.", seen.attempts)
    yield _count("repeater_event_batches_failed", "Failed tries.", seen.failures)


def _count(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, float(value))


def _histogram(name: str, text: str, seen: HistogramStatistics) -> Metric:
    """Make a histogram; each bucket of Prometheus includes the smaller ones."""
    family = HistogramMetricFamily(name, text)
    so_far, buckets = 0, list[tuple[str, float]]()
    for bound, count in zip((*map(str, map(float, seen.bounds)), "+Inf"), seen.counts, strict=True):
        so_far += count
        buckets.append((bound, so_far))
    family.add_metric((), buckets, seen.total)
    return family
