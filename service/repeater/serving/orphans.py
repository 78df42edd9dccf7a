"""The processes that become children of PID 1 when their parents end, as in a container."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Final

import trio

_FIRST_PROCESS: Final = 1
_INTERVAL: Final = 1.0  # seconds


async def reap_orphans(
    own: Callable[[], Collection[int] | None], *, process: int | None = None
) -> None:
    """Take the exit status of ended orphans until cancelled, so that none stays as a zombie.

    Returns at once in a process that is not PID 1.

    Args:
        own: The processes that others wait for; None while that is not known.
        process: This process's id, for a test.
    """
    if (process or os.getpid()) != _FIRST_PROCESS:
        return
    while True:
        await trio.sleep(_INTERVAL)
        _reap(own())


def _reap(own: Collection[int] | None) -> None:
    while own is not None:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in own:
            return
        os.waitpid(ended.si_pid, 0)
