"""How long tests wait for what is to happen: long enough on a machine that is five times too busy.

A deadline that passes is a failure of the test, so that none of these seconds is spent when all is
well. A deadline that is expected to pass is the test's own, and short.
"""

from __future__ import annotations

import math

from trio.testing import MockClock

PROCESS_STARTS = 60.0
"""Seconds until a process, a browser or a server, has started and works: 1 to 9 s here."""

LOOP_ANSWERS = 20.0
"""Seconds for what a running server, loop or page is to do next; it takes milliseconds."""


def run_in_real_time(clock: MockClock) -> None:
    """Let the clock jump no more, and go as any other does.

    For a test that waits for bytes in the kernel's TCP. They need some time on a busy machine, in
    which all tasks are blocked; a clock that jumps then would end a deadline.
    """
    clock.autojump_threshold = math.inf
    clock.rate = 1.0
