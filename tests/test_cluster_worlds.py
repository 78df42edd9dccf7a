"""Nodes on an engine that fails over, forgets and is away; nodes that are cut off, die and end.

`just drill --fault cluster_worlds` runs 10,000 such worlds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from repeater.cluster.events import ClusterEvents
from repeater.cluster.occupancy import Occupancy
from repeater.cluster.presence_entries import Entries
from tests.cluster_world import first_failure, run_world, sums
from tests.deadlines import PROCESS_STARTS
from tests.drill.worlds import ClusterWorldsDrill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5 * PROCESS_STARTS)]

_TOGETHER = 20
# Worlds in which a broken node has to be found: the first one that finds it ends the test.
_MANY = range(20, 1_000)


@pytest.mark.parametrize("first", range(0, 40, _TOGETHER))
def test_no_world_breaks_the_promise(first: int) -> None:
    """Presence is right, and so is what the application knows, some time after the last fault."""
    happened = sums([run_world(seed) for seed in range(first, first + _TOGETHER)])
    for one in ("kill", "fail_over", "node_lost", "channel_occupied", "channel_vacated"):
        assert happened[one] > 0


def test_a_world_is_the_same_each_time() -> None:
    """A seed is enough to see again what happened in a world."""
    assert sums([run_world(7)]) == sums([run_world(7)])


def _nothing(*_arguments: object) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    "forgets",
    [
        (Entries, "begin_anew"),
        (Occupancy, "release_all_of"),
        (ClusterEvents, "_come_back"),
    ],
    ids=lambda one: str(one[1]),
)
def test_what_a_node_must_not_forget(
    monkeypatch: pytest.MonkeyPatch, forgets: tuple[type, str]
) -> None:
    """Without one of these steps a world is found in which something stays wrong."""
    of, step = forgets
    nothing: Callable[..., object] = _nothing
    if step == "release_all_of":

        async def nothing(*_arguments: object) -> None:
            """Do nothing."""

    monkeypatch.setattr(of, step, nothing)
    assert first_failure(_MANY) is not None


def test_the_drill_says_how_to_see_a_world_again() -> None:
    """The drill runs worlds from its seed on, in processes of its own."""
    assert ClusterWorldsDrill(seed=3, worlds=2).run().startswith("2 worlds, ")
