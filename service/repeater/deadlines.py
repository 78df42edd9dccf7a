"""Deadlines of peers: those that came together do not end together.

A thousand connections whose deadlines are one moment would be torn down in one pass of the event
loop, and everybody else would wait for that pass. A random part keeps their ends apart.
"""

from __future__ import annotations

import math
from random import random

import trio

SPREAD = 0.2
"""The share of its time by which a deadline may come early."""


def within(seconds: float) -> float:
    """Return the Trio time at which this time for a peer ends: 80 to 100 % of `seconds` from now.

    Never later than in `seconds`: they are the bound that settings and documentation name.
    """
    return trio.current_time() + seconds * (1.0 - SPREAD * random())


def lift(scope: trio.CancelScope) -> None:
    """Take the deadline off a scope, if one was set."""
    if scope.deadline != math.inf:  # setting it costs more than looking
        scope.deadline = math.inf
