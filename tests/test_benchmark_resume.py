"""A run that was interrupted can go on: what it has to the end is kept, and nothing else."""

from __future__ import annotations

import contextlib

import pytest
from rich.console import Console

from benchmarks.claims import judge
from benchmarks.generator.wire import WireError
from benchmarks.model import Run, Series, Turn
from benchmarks.peers.floors import FLOOR_PYTHON
from benchmarks.peers.peer import Peer
from benchmarks.progress import watcher
from benchmarks.runner import take_turns
from benchmarks.workloads.workload import Plan, Workload
from tests.benchmarking import imagined_run

pytestmark = pytest.mark.slow


class Clumsy:
    """Measures nothing; at one of its turns something happens."""

    def __init__(self, at: int, happens: BaseException) -> None:
        self._at = at
        self._happens = happens
        self.turns = 0

    def __call__(self, _peer: Peer, _plan: Plan) -> Turn:
        self.turns += 1
        if self.turns == self._at:
            raise self._happens
        return Turn(values={"rate": float(self.turns)})


def workload(name: str, measure: Clumsy) -> Workload:
    return Workload(
        name=name,
        title=name,
        description="",
        group="",
        measure=measure,
        only=[FLOOR_PYTHON.name],
        rounds=3,
    )


def measured(*workloads: Workload) -> Run:
    run = Run(when="", machine={}, plan="core")
    with contextlib.suppress(KeyboardInterrupt):
        take_turns(run, workloads, [FLOOR_PYTHON], Plan(), watcher(Console(quiet=True)))
    return run


def test_interrupted_workload_is_forgotten() -> None:
    """The one before it stays, with all its turns."""
    run = measured(
        workload("whole", Clumsy(0, KeyboardInterrupt())),
        workload("half", Clumsy(2, KeyboardInterrupt())),
        workload("never", Clumsy(0, KeyboardInterrupt())),
    )
    run.drop_unfinished()
    assert set(run.workloads) == {"whole"}
    (series,) = run.series
    assert series.values("rate") == [1, 2, 3]


@pytest.mark.parametrize("fault", [WireError("lost"), OSError("gone")])
def test_failed_turn_ends_nothing(fault: Exception) -> None:
    """It is noted with its fault, and belongs to a workload that was measured to its end."""
    run = measured(workload("one", Clumsy(2, fault)))
    (series,) = run.series
    assert series.values("rate") == [1, 3]
    assert [turn.round for turn in series.turns] == [0, 2]
    assert len(series.faults) == 1
    assert "one" in run.workloads


def test_an_interrupted_run_is_judged() -> None:
    """The workload at which it was interrupted is not: its document could not be saved else."""
    run = imagined_run(histograms=False)
    run.series.append(Series(workload="accept", server="repeater"))
    judge(run)
    assert run.verdicts
    assert "accept" not in {verdict.workload for verdict in run.verdicts}
