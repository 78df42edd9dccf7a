"""The drill notices a server that loses or doubles events, and says how to see it again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.deadlines import PROCESS_STARTS
from tests.processes import starts_processes

pytestmark = pytest.mark.slow


def drill(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command without a fault."""
    command = (sys.executable, "-m", "tests.drill", "--fault", "nothing", *arguments)
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=2 * PROCESS_STARTS
    )


@starts_processes
@pytest.mark.parametrize(("broken", "said"), [("loss", "and never ["), ("double", " twice")])
def test_a_broken_server_is_noticed(broken: str, said: str) -> None:
    """One chunk of fan-out in forty is lost or doubled; no subscriber overlooks it."""
    command = f"{sys.executable} -m tests.drill.sabotage {broken} serve"
    done = drill("--seconds", "5", "--seed", "7", "--command", command)
    assert done.returncode == 1, done.stdout
    assert said in done.stderr
    assert "just drill --fault nothing --seed 7 --seconds 5" in done.stderr


@starts_processes
def test_a_server_that_keeps_its_promises_passes() -> None:
    """The line of the fault says what was checked."""
    done = drill("--seconds", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "deliveries" in done.stdout


def test_an_unknown_fault_is_refused() -> None:
    """A wrong name is an error that tells where the names are."""
    done = drill("--fault", "earthquakes")
    assert done.returncode == 2
    assert "earthquakes: see --list" in done.stderr
