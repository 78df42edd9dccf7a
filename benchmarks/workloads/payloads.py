"""Payloads: the cost of a delivery with small, medium and large events.

A fan-out to 1,000, as `fanout` does it, with events of 100 B, 1 KiB and 16 KiB. A small
delivery is mostly the kernel's work per segment, a large one mostly copying. If a server copies or
encodes an event once per subscriber, the ratio to the floor shows this cost. With four large events
a second, 64 MiB go through loopback, a small part of its capacity.
"""

from __future__ import annotations

from typing import Final

from benchmarks.workloads.fanout import fan_out
from benchmarks.workloads.workload import Workload

_SUBSCRIBERS: Final = 1_000
_SECONDS: Final = 5


def _workload(size: int, words: str, rate: float) -> Workload:
    events = round(rate * _SECONDS)
    return Workload(
        name=f"payload-{size}",
        title=f"Fan-out of {words} to {_SUBSCRIBERS:,}",
        description=f"{events} events of {size:,} bytes, {rate:g} a second, to {_SUBSCRIBERS:,} "
        "subscribers of one channel.",
        group="Payloads",
        measure=lambda peer, plan: fan_out(
            peer,
            subscribers=_SUBSCRIBERS,
            rate=rate,
            seconds=plan.of(_SECONDS, 2),
            size=size,
        ),
        beside=("floor",),
        subscribers=_SUBSCRIBERS,
        broad=True,
        rounds=2,
    )


WORKLOADS: Final = (
    _workload(100, "100 B", 20),
    _workload(1_024, "1 KiB", 20),
    _workload(16_384, "16 KiB", 4),
)
