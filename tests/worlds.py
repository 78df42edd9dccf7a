"""What simulated worlds share: each lives on a clock of its own, and is the same each time."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import trio
from trio.testing import MockClock

from repeater.brokers.valkey import lanes


@contextmanager
def determined(seed: int) -> Iterator[None]:
    """Have Trio and everybody else make the same random choices each time, and log nothing."""
    log = logging.getLogger("repeater")
    level = log.level
    log.setLevel(logging.CRITICAL)
    scheduler: Any = trio._core._run
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    random.seed(seed)
    # Python's hash of a text differs in each process, and decides which channels share a lane.
    lanes.hash = lambda channel: crc32(channel.encode())  # type: ignore[attr-defined]
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before
        log.setLevel(level)
        del lanes.hash  # type: ignore[attr-defined]


def run_life(life: Callable[[], Awaitable[None]], seed: int) -> None:
    """Run a world's life; raises the first error of it, also out of groups."""
    with determined(seed):
        try:
            trio.run(life, clock=MockClock(autojump_threshold=0))
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from group
