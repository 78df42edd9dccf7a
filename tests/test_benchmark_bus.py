"""The benchmark of the engine's bus measures what it says."""

from __future__ import annotations

import re

from click.testing import CliRunner

from benchmarks.bus import main
from tests.processes import starts_processes


@starts_processes
def test_a_small_measurement() -> None:
    """Each channel missed something and was read once; a node and the floor took messages."""
    done = CliRunner().invoke(main, ["--channels", "50", "--seconds", "0.5", "--rate", "500"])
    assert done.exception is None
    lines = [line for line in done.output.splitlines() if "us a" in line or "missed" in line]
    for who, line in zip(("a node", "a bare loop"), lines, strict=False):
        figures = r"[\d.-]+ us a message at [\d,]+/s, [\d-]+ us a read at [\d,]+/s"
        assert re.fullmatch(f"{who}: {figures}", line)
    for missed, line in zip((1, 5), lines[2:], strict=True):
        assert line.startswith(f"50 channels that missed {missed} each: ")
        assert line.endswith("50 reads")
