"""The garbage collector of a server's process."""

from __future__ import annotations

import subprocess
import sys

from tests.deadlines import PROCESS_STARTS
from tests.processes import starts_processes

_PROGRAM = """
import gc, trio
from click.testing import CliRunner
from repeater.cli.main import main

def run(*_):
    print(gc.get_threshold()[0], gc.get_freeze_count() > 10_000, gc.isenabled())

trio.run = run
result = CliRunner().invoke(main, ["serve", "--dev", "--no-comments", "--port", "0"])
print(result.output, end="")
"""


@starts_processes
def test_serve_settles_the_heap_before_it_serves() -> None:
    """`repeater serve` leaves out of collections what was imported, and collects more rarely."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        capture_output=True,
        text=True,
        timeout=PROCESS_STARTS,
        check=True,
    )
    assert done.stdout == "10000 True True\n"
