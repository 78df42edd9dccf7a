"""All workloads, in the order in which they are measured and shown."""

from __future__ import annotations

from typing import Final

from benchmarks.workloads import (
    accept,
    channels,
    durable,
    fanout,
    flood,
    hostile,
    idle,
    memory,
    mixed,
    payloads,
    protobuf,
    publishing,
    slow,
    storm,
    syscalls,
    valkey,
    valkey_nodes,
    valkey_storm,
    workers,
)
from benchmarks.workloads.workload import Workload

WORKLOADS: Final[dict[str, Workload]] = {
    workload.name: workload
    for workload in (
        *fanout.WORKLOADS,
        *payloads.WORKLOADS,
        *channels.WORKLOADS,
        *slow.WORKLOADS,
        *flood.WORKLOADS,
        *accept.WORKLOADS,
        *storm.WORKLOADS,
        *memory.WORKLOADS,
        *idle.WORKLOADS,
        *publishing.WORKLOADS,
        *mixed.WORKLOADS,
        *syscalls.WORKLOADS,
        *hostile.WORKLOADS,
        *durable.WORKLOADS,
        *valkey.WORKLOADS,
        *valkey_nodes.WORKLOADS,
        *valkey_storm.WORKLOADS,
        *workers.WORKLOADS,
        *protobuf.WORKLOADS,
    )
}
