"""Every workload there is, in the order in which they are measured and shown."""

from __future__ import annotations

from typing import Final

from benchmarks.workloads import fanout, idle
from benchmarks.workloads.workload import Workload

WORKLOADS: Final[dict[str, Workload]] = {
    workload.name: workload for workload in (*fanout.WORKLOADS, *idle.WORKLOADS)
}
