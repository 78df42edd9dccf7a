"""What a deliberate difference is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.differential.steps import Moment, Step


class Kind(NamedTuple):
    """One kind of difference between Centrifugo and Repeater that is meant to be.

    An excuse takes this kind out of a moment, from both sides, and nothing else. What is left
    must be equal.
    """

    name: str
    there: str
    """What Centrifugo does."""
    here: str
    """What Repeater does."""
    reason: str
    excuse: Callable[[Moment], Moment]
    example: Sequence[Step]
    """The shortest conversation that shows it."""
    parts_ways: bool = False
    """What follows in the same conversation cannot be compared."""
    codec: str = "json"
    """What the example speaks."""
