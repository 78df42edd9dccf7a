"""The benchmarks of durable history and workers: a small turn of each, and how they are judged."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.claim import Claim
from benchmarks.engine_claims import ENGINE_CLAIMS
from benchmarks.generator.scrape import by_worker
from benchmarks.generator.tokens import token
from benchmarks.machine import disk
from benchmarks.model import METRICS, Metric, Run, Series, Task, Turn
from benchmarks.peers.engines import COMMITS, ENGINES, EVALSHA, MEMORY, ON_VALKEY
from benchmarks.peers.repeater import REPEATER
from benchmarks.workloads import durable, valkey, valkey_nodes, valkey_storm, workers
from benchmarks.workloads.calls import closed_loops
from benchmarks.workloads.durable import alone
from benchmarks.workloads.registry import WORKLOADS
from benchmarks.workloads.workers_stream import paced_stream
from repeater.access.tokens.options import TokenOptions
from repeater.access.tokens.verifier import open_verifier
from tests.processes import starts_processes

_SCRAPED = """\
# TYPE repeater_connections gauge
repeater_connections{transport="websocket",protocol="plain",worker="1"} 3.0
repeater_connections{transport="websocket",protocol="centrifugo-json",worker="1"} 4.0
repeater_connections{worker="2",transport="websocket",protocol="plain"} 5.0
repeater_connections_opened_total{worker="1"} 9.0
repeater_denials 0.0
"""


def run_of(values: dict[str, list[float | None]]) -> Run:
    """One workload with a metric `p50`; None stands for a turn that failed."""
    series = [
        Series(
            workload="w",
            server=server,
            turns=[
                Turn(values={"p50": value}, round=number)
                for number, value in enumerate(rounds)
                if value is not None
            ],
        )
        for server, rounds in values.items()
    ]
    task = Task(title="W", description="", group="G", metrics={"p50": Metric("median", "ms")})
    return Run(when="", machine={}, plan="engines", workloads={"w": task}, series=series)


def over(*servers: str) -> Claim:
    return Claim(
        workload="w",
        metric="p50",
        limit=0.1,
        side="at most",
        origin="",
        server="ours",
        over=servers,
    )


def test_a_difference_is_of_one_round() -> None:
    """The others' values are subtracted; a round that lacks one of them does not count."""
    run = run_of({"ours": [1.0, 2.0, 3.5], "a": [0.5, None, 3.0], "b": [0.25, 0.5, 0.25]})
    verdict = over("a", "b").judge(run)
    assert (verdict.value, verdict.unit, verdict.passed) == (0.25, "ms", False)
    assert verdict.claim == "w (ours): median, over a and b"


def test_a_difference_without_one_of_its_servers_is_not_measured() -> None:
    """As a ratio without the server that divides."""
    run = run_of({"ours": [1.0], "a": [0.5]})
    assert over("a", "b").judge(run).outcome == "not measured"


def test_series_are_added_for_each_worker() -> None:
    """The labels come in any order; one process has the name ""."""
    assert by_worker(_SCRAPED, "repeater_connections") == {"1": 7.0, "2": 5.0}
    assert by_worker(_SCRAPED, "repeater_denials") == {"": 0.0}


def test_every_claim_has_its_workload_and_servers() -> None:
    """All of them are measured by `just bench-engines`."""
    groups = (durable, valkey, valkey_storm, workers)
    ours = {one.name: one for group in groups for one in group.WORKLOADS}
    assert {claim.workload for claim in ENGINE_CLAIMS} == set(ours)
    for claim in ENGINE_CLAIMS:
        takers = {peer.name for peer in ENGINES if ours[claim.workload].skips(peer) is None}
        assert {claim.server, *claim.over} | ({claim.against} - {""}) <= takers


async def test_a_user_has_a_token() -> None:
    """The server proves it by the same secret."""
    secret = "a secret of 32 bytes or a few more"
    async with open_verifier(TokenOptions(hmac_secret_key=secret)) as verifier:
        grant = await verifier.verify_connection(token(secret, "user-7"))
    assert grant.user == "user-7"


def test_durable_history_in_memory_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file on tmpfs costs nothing to sync, and survives nothing."""
    memory = next((one for one in ("/dev/shm", "/run") if Path(one).is_dir()), None)
    if memory is None:
        pytest.skip("no tmpfs here")
    monkeypatch.setattr(tempfile, "tempdir", memory)
    if disk() != "tmpfs":
        pytest.skip("no tmpfs here")
    done = CliRunner().invoke(main, ["engines", "--only", "durable-call", "--folder", memory])
    assert done.exit_code == 1
    assert "in memory" in done.output


@pytest.mark.slow
@starts_processes
def test_closed_loops() -> None:
    """Some connections call at once, and each call is timed."""
    turn = closed_loops(MEMORY, connections=4, seconds=0.1)
    assert 0 < turn.values["publish_p50_ms"] <= turn.values["publish_p99_ms"]
    assert turn.values["call_us"] > 0


@pytest.mark.slow
@starts_processes
def test_the_floor_of_a_durable_call() -> None:
    """A program commits, and tells the median of a commit and of a sync."""
    turn = alone(COMMITS, seconds=0.1)
    assert turn.values["publish_p50_ms"] > 0
    assert {*turn.values} <= {*METRICS, *WORKLOADS["durable-call"].metrics}


@pytest.mark.slow
@starts_processes
def test_turns_on_valkey() -> None:
    """The engine's CPU is told beside the server's, and how many publications were in a script."""
    turn = valkey.ingest(ON_VALKEY, events=2_000)
    assert {*turn.values} == {*WORKLOADS["valkey-stream"].metrics}
    assert all(value > 0 for value in turn.values.values())
    assert valkey.alone(EVALSHA, seconds=0.1).values["publish_p50_ms"] > 0


@pytest.mark.slow
@starts_processes
def test_two_nodes_on_one_valkey() -> None:
    """Each event is heard on the other node; each cost is told."""
    turn = valkey_nodes.nodes(ON_VALKEY, events=20)
    assert {*turn.values} == {*WORKLOADS["valkey-nodes"].metrics, "call_us"}
    assert turn.values["call_us"] > 0


@pytest.mark.slow
@starts_processes
def test_a_stream_in_pieces() -> None:
    """Every subscriber hears every event, and the CPU of one process is all the CPU."""
    turn = paced_stream(MEMORY, ["a", "b"], pieces=3)
    assert turn.values["supervisor_us"] == pytest.approx(turn.values["event_us"], rel=0.2)


@pytest.mark.slow
@starts_processes
def test_turns_of_workers_run_on_one_process() -> None:
    """The one that they are compared with."""
    assert workers.storm(MEMORY, clients=600).values["rate"] > 0
    assert 0 < workers.hand_over(MEMORY, subscribers=20, events=1).values["written_ms"] < 100
    assert 20 < workers.memory(MEMORY).values["private_mb"] < 200


def test_engines_have_the_same_history() -> None:
    """What is compared keeps as many publications, and other peers are left alone."""
    assert all(peer.settings() == MEMORY.settings() for peer in ENGINES if not peer.floor)
    assert not any(WORKLOADS["publish"].skips(peer) is None for peer in ENGINES)
    assert REPEATER.settings() != MEMORY.settings()


@pytest.mark.slow
@starts_processes
def test_clients_of_a_killed_node_recover_on_the_other() -> None:
    """Each of them has every event once and in order, and the claims say that all must."""
    turn = valkey_storm.storm_of_two(ON_VALKEY, clients=40, channels=["a", "b"])
    assert [turn.values[name] for name in ("lost", "doubled", "misplaced")] == [0, 0, 0]
    assert turn.values["seconds"] > 0
