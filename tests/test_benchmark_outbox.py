"""The benchmark of publishing inside a transaction measures what it says."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from benchmarks.outbox.__main__ import main
from tests.deadlines import PROCESS_STARTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(6 * PROCESS_STARTS)]


def lines(*arguments: str) -> list[str]:
    done = CliRunner().invoke(main, [*arguments])
    assert done.exception is None, done.output
    return done.output.splitlines()[2:]


def test_what_publishing_costs() -> None:
    """Three ways, each with its figures, and the ratios of one round."""
    found = lines("--only", "publish", "--seconds", "1", "--rounds", "1")
    assert len(found) == 3 * 5
    for line in found:
        figures = r"[\d ]+ us of the database a commit, [\d ,]+ commits/s, p50 .*, p99 .* ms"
        ratios = r"[\d.]+ x the CPU \(.*\), [\d.]+ x the commits \(.*\)"
        assert re.fullmatch(
            rf" *\d+ clients, (\w+ *: {figures}|publish against .*: {ratios})", line
        )


def test_how_soon_it_arrives() -> None:
    """Every publication of each engine and rate; and what an open transaction holds up."""
    for line in lines("--only", "latency", "--seconds", "1"):
        found = re.fullmatch(r"\w+ +\d+/s: p50 .*, p99 .*; the .*; ([\d,]+) of ([\d,]+)", line)
        assert found is not None
        assert found[1] == found[2]
    assert [line.split()[0] for line in lines("--only", "open", "--rounds", "1")] == [
        "same",
        "other",
    ]


def test_what_looking_costs() -> None:
    """Without publications, and with dead rows that a snapshot keeps."""
    idle = lines("--only", "idle", "--seconds", "0.5")
    assert len(idle) == 2
    assert all("of a core for the database" in line for line in idle)
    held = lines("--only", "held", "--held", "2")
    assert all(re.search(r"with 3,000 dead rows: [\d.]+ x$", line) for line in held)
