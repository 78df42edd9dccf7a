"""A document of a benchmark run that never took place: for the tests of what is made of runs.

Nine servers: floors, Repeater and a variant, and peers of which one loses events, one bears fewer
subscribers, one is so fast that the load generator was the bottleneck, and one is not installed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final

from benchmarks.model import MOST_US, Metric, Run, Series, Server, Task, Turn, new_histogram

SIZES: Final = (1, 100, 1_000, 5_000, 9_000)
ROUNDS: Final = 3

# Microseconds of CPU a delivery, and KiB a connection.
_COSTS: Final[Mapping[str, tuple[float, float]]] = {
    "floor": (3.1, 0.1),
    "floor-python": (4.5, 0.9),
    "repeater": (3.9, 5.4),
    "repeater-sse": (3.8, 5.9),
    "quart-trio": (88.0, 61.0),
    "websockets": (19.0, 33.0),
    "picows": (5.2, 4.0),
    "uwebsockets": (3.4, 1.4),
    "nchan": (6.1, 2.9),
}
_TITLES: Final = {
    "floor": "floor: a bare loop of send() (C)",
    "floor-python": "floor: the same loop (Python)",
    "repeater": "Repeater (Trio, Python)",
    "repeater-sse": "Repeater, Server-Sent Events",
    "quart-trio": "Quart-Trio, a queue per client (Python)",
    "websockets": "websockets broadcast (asyncio with uvloop)",
    "picows": "picows (asyncio with uvloop)",
    "uwebsockets": "uWebSockets (socketify, C++)",
    "nchan": "Nchan (nginx, C)",
}
_MACHINE: Final = {
    "cpu": "Imagined CPU @ 3 GHz",
    "cores": "2; the server on 0, the load generator on 1",
    "memory": "8 GiB",
    "kernel": "Linux 6.1",
    "python": "CPython 3.11.7",
    "packages": "trio 0.35.0, websockets 15.0",
}


def imagined_run(
    seed: int = 1,
    *,
    noise: float = 0.03,
    costs: Mapping[str, float] = {},
    histograms: bool = True,
) -> Run:
    """A run: `noise` is the relative standard deviation of a turn, `costs` multiply a server's.

    Histograms take most of the time.
    """
    chance = random.Random(seed)
    run = Run(when="2026-01-02T03:04:05+00:00", machine=dict(_MACHINE), plan="full", seconds=754.0)
    run.missing = {"Mercure (Go)": "no mercure on the PATH"}
    for name, title in _TITLES.items():
        run.servers[name] = Server(
            title=title,
            version="1.2.3",
            configuration=f"{name} --port PORT",
            variant_of="repeater" if name == "repeater-sse" else "",
            floor=name.startswith("floor"),
        )
    for size in SIZES:
        _fan_out(run, chance, size, noise, costs, histograms)
    _flood(run, chance, noise, costs)
    _memory(run, chance, noise, costs)
    return run


def _fan_out(
    run: Run,
    chance: random.Random,
    size: int,
    noise: float,
    costs: Mapping[str, float],
    histograms: bool,
) -> None:
    name = f"fanout-{size}"
    run.workloads[name] = Task(
        title=f"Fan-out to {size:,}",
        description=f"20 events a second to {size:,} subscribers.",
        group="Fan-out",
        metrics={},
    )
    for server, (cpu, _) in _COSTS.items():
        series = Series(workload=name, server=server)
        run.series.append(series)
        if server == "quart-trio" and size > 1_000:
            series.skipped = "it can't keep up with more than 1,000"
            continue
        for number in range(ROUNDS):
            if server == "websockets" and size == 9_000 and number < 2:
                series.faults.append("WireError: subscriber 17 lost an event:\n12 came after 10")
                continue
            cost = cpu * costs.get(server, 1.0) * chance.lognormvariate(0, noise)
            ms = 0.05 + cost * size / 1e3
            shaken = [chance.lognormvariate(0, noise) for _ in range(4)]
            series.turns.append(
                Turn(
                    values={
                        "cpu_us": cost,
                        "delivery_p50_ms": ms * 0.5 * shaken[0],
                        "delivery_p99_ms": ms * 1.5 * shaken[1],
                        "last_p50_ms": ms * shaken[2],
                        "last_p99_ms": ms * 2 * shaken[3],
                        "rss_mib": 30 + size / 100,
                    },
                    histograms=_distributions(chance, ms) if histograms else {},
                    generator=0.95 if (server, size, number) == ("uwebsockets", 5_000, 1) else 0.5,
                    round=number,
                )
            )


def _distributions(chance: random.Random, ms: float) -> dict[str, str]:
    delivery, last = new_histogram(), new_histogram()
    for _ in range(200):
        took = ms * 1e3 * chance.lognormvariate(0, 0.3)
        last.record_value(min(int(took) + 1, MOST_US))
        for _ in range(8):
            delivery.record_value(min(int(took * chance.random()) + 1, MOST_US), 5)
    return {"delivery": delivery.encode().decode(), "last": last.encode().decode()}


def _flood(run: Run, chance: random.Random, noise: float, costs: Mapping[str, float]) -> None:
    run.workloads["flood"] = Task(
        title="Flood",
        description="As many deliveries as the server makes.",
        group="Throughput",
        metrics={"lateness": Metric("the longest silence", "ms", short="silence ms")},
    )
    for server, (cpu, _) in _COSTS.items():
        if run.servers[server].floor or server == "repeater-sse":
            continue
        run.series.append(
            Series(
                workload="flood",
                server=server,
                turns=[
                    Turn(
                        values={
                            "rate": 1e6
                            / cpu
                            / costs.get(server, 1)
                            * chance.lognormvariate(0, noise),
                            "lateness": 3.0 * chance.lognormvariate(0, noise),
                        },
                        generator=0.7,
                        round=number,
                    )
                    for number in range(ROUNDS)
                ],
            )
        )


def _memory(run: Run, chance: random.Random, noise: float, costs: Mapping[str, float]) -> None:
    run.workloads["memory"] = Task(
        title="Idle memory",
        description="5,000 subscribers that hear nothing.",
        group="Memory",
        metrics={},
    )
    for server, (_, kib) in _COSTS.items():
        run.series.append(
            Series(
                workload="memory",
                server=server,
                turns=[
                    Turn(
                        values={
                            "memory_kib": kib
                            * costs.get(server, 1)
                            * chance.lognormvariate(0, noise / 10)
                        },
                        round=number,
                    )
                    for number in range(ROUNDS)
                ],
            )
        )
