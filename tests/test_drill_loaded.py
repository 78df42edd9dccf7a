"""The drills of a durable history pass, and notice servers that break its promises."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from tests.drill.ledger import BrokenPromise
from tests.drill.load import Load
from tests.drill.loaded import LOADED, LoadedDrill, LoadedFault, durable_kills
from tests.drill.missing import Missing
from tests.drill.power import PowerDrill
from tests.processes import SERVE, starts_processes

pytestmark = pytest.mark.slow  # once is enough: nothing in it depends on the version of Python

_SEED = 1


def run(drill: LoadedDrill | PowerDrill) -> str:
    """What the drill says, or the test is skipped as the drill is."""
    try:
        return drill.run()
    except Missing as why:
        pytest.skip(str(why))


def kills(command: Sequence[str]) -> LoadedDrill:
    """One kill of a server under some load."""
    fault = LoadedFault(durable_kills, Load(followers=10, calls=2, pause=0.01))
    return LoadedDrill(fault, 1, 1_000, _SEED, command)


@starts_processes
def test_a_killed_server_has_what_it_acknowledged() -> None:
    """The line says what was compared."""
    assert "publications" in run(kills(SERVE))


@starts_processes
def test_a_server_that_does_not_keep_a_row_is_noticed() -> None:
    """By what is in its file when it was killed."""
    command = (sys.executable, "-m", "tests.drill.sabotage", "forget", "serve")
    with pytest.RaisesGroup(BrokenPromise, allow_unwrapped=True, flatten_subgroups=True):
        run(kills(command))


@starts_processes
def test_a_loss_of_power_breaks_no_promise() -> None:
    """The line says how many streams were compared."""
    assert " kept" in run(PowerDrill(_SEED, 6, "disk", seconds=0.5))


@starts_processes
@pytest.mark.parametrize("level", ["OFF", "NORMAL"])
def test_a_server_that_syncs_too_rarely_is_noticed(level: str) -> None:
    """It says `disk`, and has SQLite sync never, or only when the WAL is taken over."""
    with pytest.RaisesGroup(BrokenPromise, allow_unwrapped=True, flatten_subgroups=True):
        run(PowerDrill(_SEED, 12, "disk", seconds=1, synchronous=level))


def test_each_fault_has_its_name_and_says_what_it_is() -> None:
    """`just drill --list` shows both."""
    assert len({one.name for one in LOADED}) == len(LOADED)
    assert all(one.make.__doc__ for one in LOADED)
