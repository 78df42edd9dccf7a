"""Takes the turns: every server once in each round, A B A B, so a noisy minute affects all.

A ratio is calculated within a round; medians over the rounds count. If a server fails in a turn,
its fault is noted, and the others go on.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence

import msgspec

from benchmarks.generator.wire import WireError
from benchmarks.model import Run, Series, Server, Task
from benchmarks.peers.peer import Peer
from benchmarks.progress import Watcher
from benchmarks.servers import ServerError
from benchmarks.workloads.workload import Plan, Workload


def take_turns(
    run: Run, workloads: Sequence[Workload], peers: Sequence[Peer], plan: Plan, watcher: Watcher
) -> None:
    """Measure, and put each result into `run` at once."""
    start = time.monotonic()
    present = [peer for peer in peers if _is_present(run, peer)]
    _describe(run, present)
    parts = [(workload, *_taking_part(run, workload, present)) for workload in workloads]
    rounds = [1 if plan.quick else min(plan.rounds, one.rounds) for one in workloads]
    turns = [len(takers) * count for (_, takers, _), count in zip(parts, rounds, strict=True)]
    with watcher:
        watcher.start(len(parts), sum(turns))
        for (workload, takers, series), count in zip(parts, rounds, strict=True):
            watcher.workload(workload.title, len(takers), count)
            for number in range(count):
                for peer, one in zip(takers, series, strict=True):
                    watcher.turn(peer.name)
                    _take_turn(workload, peer, one, plan, number)
                    watcher.done()
            run.workloads[workload.name] = _task(workload)
    run.seconds += time.monotonic() - start


def _is_present(run: Run, peer: Peer) -> bool:
    reason = peer.missing()
    if reason is not None and (peer.ordinary or peer.name == "floor"):
        run.missing[peer.title] = reason
    return reason is None


def _describe(run: Run, peers: Sequence[Peer]) -> None:
    for peer in peers:
        run.servers[peer.name] = Server(
            title=peer.title,
            version=peer.version(),
            configuration=peer.configuration(),
            variant_of=peer.variant_of,
            floor=peer.floor,
        )


def _task(workload: Workload) -> Task:
    return Task(
        title=workload.title,
        description=workload.description,
        group=workload.group,
        metrics=dict(workload.metrics),
    )


def _taking_part(
    run: Run, workload: Workload, peers: Sequence[Peer]
) -> tuple[list[Peer], list[Series]]:
    takers, measured = list[Peer](), list[Series]()
    for peer in peers:
        reason = workload.skips(peer)
        if reason == "":
            continue
        series = Series(workload=workload.name, server=peer.name, skipped=reason or "")
        run.series.append(series)
        if reason is None:
            takers.append(peer)
            measured.append(series)
    return takers, measured


def _take_turn(workload: Workload, peer: Peer, series: Series, plan: Plan, number: int) -> None:
    try:
        turn = workload.measure(peer, plan)
        series.turns.append(msgspec.structs.replace(turn, round=number))
    except (WireError, ServerError, OSError) as error:
        series.faults.append(f"{type(error).__name__}: {error}")
    gc.collect()
