"""One small turn of each workload against the real server: nothing is measured, all of it runs."""

from __future__ import annotations

import pytest

from benchmarks.model import METRICS
from benchmarks.peers.floors import BARE_TRIO
from benchmarks.peers.repeater import REPEATER
from benchmarks.workloads.accept import accept
from benchmarks.workloads.flood import flood
from benchmarks.workloads.publishing import publish
from benchmarks.workloads.registry import WORKLOADS
from benchmarks.workloads.storm import storm
from tests.processes import starts_processes

pytestmark = [starts_processes, pytest.mark.slow]


def test_a_flood() -> None:
    """Every event reaches every subscriber, checked."""
    turn = flood(REPEATER, seconds=0.3, subscribers=20)
    assert turn.values["rate"] > 0
    assert {*turn.values} <= {*METRICS, *WORKLOADS["flood"].metrics}


def test_connections() -> None:
    """They are counted until they are subscribed."""
    turn = accept(REPEATER, most=300)
    assert turn.values["rate"] > 0
    assert {*turn.values} <= {*METRICS, *WORKLOADS["accept"].metrics}


def test_calls() -> None:
    """Each is timed."""
    turn = publish(REPEATER, seconds=0.1)
    assert 0 < turn.values["publish_p50_ms"] <= turn.values["publish_p99_ms"]
    assert turn.values["rate"] > 0


@pytest.mark.parametrize("name", ["reconnect-storm", "reconnect-storm-100"])
def test_a_storm(name: str) -> None:
    """Everybody comes back, with nothing lost, doubled or out of order."""
    channels = ["news"] if name == "reconnect-storm" else ["news", "sports"]
    turn = storm(REPEATER, clients=100, channels=channels)
    assert turn.values["seconds"] > 0
    assert [turn.values[fault] for fault in ("lost", "doubled", "misplaced")] == [0, 0, 0]
    assert {*turn.values} <= {*METRICS, *WORKLOADS[name].metrics}


def test_bare_handshakes() -> None:
    """What a storm is compared with knows no channels."""
    turn = storm(BARE_TRIO, clients=100, channels=["news"])
    assert {*turn.values} == {"seconds", "client_us"}
