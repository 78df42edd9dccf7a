"""A workload: how it measures one server in one turn, and which servers take part."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from benchmarks.model import MOST_US, Metric, Turn, new_histogram
from benchmarks.peers.peer import Capability, Peer


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured: everything, or scaled down for a look."""

    quick: bool = False
    rounds: int = 3
    """The most rounds that a workload takes; a quick plan takes one."""
    seconds: int = 0
    """How long a part of a hostile turn lasts; 0: as long as the workload says."""

    def of(self, full: int, quick: int) -> int:
        return quick if self.quick else full


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """One question, asked of every server that can answer it."""

    name: str
    """For options and JSON, e.g. `fanout-1000`."""
    title: str
    description: str
    """What the workload does and counts, for the documentation."""
    group: str
    """The heading under which it is shown."""
    measure: Callable[[Peer, Plan], Turn]
    """One turn, from the server's start to its end. A `WireError`, `ServerError` or `OSError` is
    the server's fault and noted as such."""
    metrics: Mapping[str, Metric] = msgspec.field(default_factory=dict)
    """Metrics of its own, besides the common ones."""
    needs: frozenset[Capability] = frozenset()
    beside: Sequence[str] = ()
    """Peers that are not `ordinary` and take part here."""
    only: Sequence[str] = ()
    """If not empty, only these peers take part."""
    broad: bool = False
    """Whether it is one of many similar workloads; baselines take no part in these."""
    subscribers: int = 0
    """The number of subscribers that a server must support to take part."""
    tool: str = ""
    """A program that the workload needs."""
    rounds: int = 3
    core: bool = False
    """Whether it belongs to the core table, which takes a few minutes."""
    apart: bool = False
    """Whether it has a command of its own, and takes no part in a full run."""

    def skips(self, peer: Peer) -> str | None:
        """Return why this peer does not take part; None if it does, empty if it is not meant to."""
        named = peer.name in (*self.beside, *self.only)
        if not named and (self.only or not peer.ordinary):
            return ""
        if self.tool and shutil.which(self.tool) is None:
            return f"{self.tool} is not installed"
        if named:
            return None
        if self.broad and peer.baseline:
            return "a baseline; other workloads show it"
        if lacking := self.needs - peer.capabilities:
            return f"it has no {', '.join(sorted(lacking))}"
        if self.subscribers > peer.most:
            return peer.most_because
        return None


def distribution(values_ns: Iterable[int]) -> str:
    """An encoded histogram of nanoseconds."""
    histogram = new_histogram()
    for value, count in Counter(value // 1_000 for value in values_ns).items():
        histogram.record_value(min(max(value, 1), MOST_US), count)
    encoded: bytes = histogram.encode()
    return encoded.decode()


def percentile_ms(values_ns: Sequence[int], percent: float) -> float:
    """The smallest value that `percent` per cent of the values do not exceed."""
    ordered = sorted(values_ns)
    return ordered[max(0, -(-int(len(ordered) * percent) // 100) - 1)] / 1e6
