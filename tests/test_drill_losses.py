"""Losses of power are chosen so that there is something to compare, however slow the machine is."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.drill.disk import Step
from tests.drill.losses import some_losses
from tests.drill.recorder import FILES, SYNC, WRITE

_SECOND = 1_000_000_000


def recording(moments: Sequence[int], file: int, operation: int) -> list[Step]:
    """A recording with one step at each of these moments."""
    return [Step(moment, operation, file, 0, memoryview(b"")) for moment in moments]


@given(
    starting=st.lists(st.integers(0, 60 * _SECOND), min_size=1),
    under_load=st.lists(st.integers(0, _SECOND)),
    file=st.integers(0, len(FILES) - 1),
    operation=st.sampled_from([WRITE, SYNC]),
    count=st.integers(1, 12),
    seed=st.integers(0, 1_000),
)
def test_all_losses_but_one_are_under_load(
    starting: list[int], under_load: list[int], file: int, operation: int, count: int, seed: int
) -> None:
    """A start of a minute before half a second of load takes one loss; they are in order."""
    loaded = 60 * _SECOND
    moments = sorted(starting) + sorted(loaded + one for one in under_load)
    losses = some_losses(recording(moments, file, operation), loaded, count, Random(seed))
    chosen = [loss.moment for loss in losses]
    assert len(chosen) == count
    assert chosen == sorted(chosen)
    assert sum(moment < loaded for moment in chosen) <= (count > 1)
    assert chosen[-1] <= max(loaded, moments[-1])
