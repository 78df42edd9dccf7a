"""Claims: how a run's rounds become a verdict."""

from __future__ import annotations

from benchmarks.claims import CLAIMS, judge
from benchmarks.model import Run, Series, Task, Turn
from benchmarks.peers.registry import PEERS
from benchmarks.workloads.registry import WORKLOADS


def run_of(workload: str, **rounds: list[dict[str, float]]) -> Run:
    """A run in which these servers had these values in their turns."""
    own = dict(WORKLOADS[workload].metrics)
    return Run(
        when="",
        machine={},
        plan="full",
        workloads={workload: Task(title="", description="", group="", metrics=own)},
        series=[
            Series(
                workload=workload,
                server=server.replace("_", "-"),
                turns=[Turn(values=values, round=number) for number, values in enumerate(turns)],
            )
            for server, turns in rounds.items()
        ],
    )


def storm(seconds: float, lost: int = 0) -> dict[str, float]:
    return {"seconds": seconds, "lost": lost, "doubled": 0, "misplaced": 0}


def test_one_lost_event_in_one_round_is_a_miss() -> None:
    """What must never happen is judged by the worst round; the rest by the median of the rounds."""
    bare = [{"seconds": 1.0}] * 3
    run = run_of("reconnect-storm", repeater=[storm(2), storm(9, 1), storm(2)], bare_trio=bare)
    judge(run)
    ratio, lost, doubled, misplaced = run.verdicts
    assert (ratio.value, ratio.passed) == (2.0, True)
    assert (lost.value, lost.passed) == (1, False)
    assert doubled.passed
    assert misplaced.passed


def test_a_claim_names_the_workloads_own_metric() -> None:
    """The title that the workload gives a metric is the claim's."""
    run = run_of("publish", repeater=[{"rate": 4_000.0}])
    judge(run)
    assert [(one.claim, one.passed) for one in run.verdicts] == [("publish: calls a second", True)]


def test_every_claim_can_be_judged() -> None:
    """Each names a workload and a server that exist and take part in it."""
    for claim in CLAIMS:
        assert WORKLOADS[claim.workload].skips(PEERS[claim.server]) is None


def test_every_workload_takes_known_peers() -> None:
    """The peers that a workload names beside the ordinary ones exist."""
    for workload in WORKLOADS.values():
        assert {*workload.beside, *workload.only} <= {*PEERS}
