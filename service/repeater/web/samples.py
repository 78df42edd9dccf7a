"""The samples of a scrape as plain values, which workers and their supervisor can send each other.

Prometheus's client makes them from its collectors, and writes them as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One number. `name` is the family's, with a suffix as `_total` or `_bucket`."""

    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    """The samples of one metric."""

    name: str
    text: str
    kind: str
    """`counter`, `gauge`, `histogram` or `info`."""
    samples: list[Sample]


def families_of(registry: CollectorRegistry) -> list[Family]:
    """Read all metrics of a registry."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [Sample(one.name, dict(one.labels), float(one.value)) for one in metric.samples],
        )
        for metric in registry.collect()
    ]


def registry_of(families: Sequence[Family]) -> CollectorRegistry:
    """A registry that has these metrics, for Prometheus's encoders."""
    registry = CollectorRegistry()
    registry.register(_Read(families))
    return registry


class _Read(Collector):
    """Metrics that were read before."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.text, family.kind)
            for one in family.samples:
                metric.add_sample(one.name, one.labels, one.value)
            yield metric
