"""What a signal means while the server does not read signals: as it starts, and when it has ended.

The first statement of the `serve` command comes here, before the imports that take a second. This
module must import nothing that is large.
"""

from __future__ import annotations

import signal

TYPE_CHECKING = False  # `typing` is too large to be imported here

if TYPE_CHECKING:
    from types import FrameType
    from typing import Final

RELOAD: Final[signal.Signals | None] = getattr(signal, "SIGHUP", None)
"""The signal that has the configuration read again; not on every system."""

STOP: Final = (signal.SIGINT, signal.SIGTERM)
"""The signals that end the server."""

CUT: Final[signal.Signals | None] = getattr(signal, "SIGUSR1", None)
"""The signal by which a supervisor cuts a worker's shutdown short; not on every system. Before the
worker receives signals it ends the process, as it does by default."""

_kept: Final[list[int]] = []
_begun = False  # a program that runs the command without `begin` has its own handlers


def begin() -> None:
    """Keep a signal to reload until the server is ready, and exit at a signal to stop.

    Exits by SystemExit with status 0: the server ends as it was asked to.
    """
    global _begun
    _begun = True
    if RELOAD is not None:
        signal.signal(RELOAD, _keep)
    for number in STOP:
        signal.signal(number, _exit)


def keep_all() -> None:
    """Keep the signals to stop too: from here on Trio runs, in which nothing may be raised.

    Does nothing without `begin`.
    """
    for number in STOP if _begun else ():
        signal.signal(number, _keep)


def take_kept() -> tuple[int, ...]:
    """The signals that came so far, in their order; each is returned once."""
    kept = tuple(_kept)
    del _kept[: len(kept)]
    return kept


def ignore_all() -> None:
    """Ignore them all: the server has ended, and the process is about to.

    Does nothing without `begin`.
    """
    for number in (*STOP, RELOAD) if _begun else ():
        if number is not None:
            signal.signal(number, signal.SIG_IGN)


def _keep(number: int, _frame: FrameType | None) -> None:
    _kept.append(number)


def _exit(number: int, _frame: FrameType | None) -> None:
    # Kept as well: where the exception is raised in a finaliser, or in a module that catches all,
    # it is lost, and the server would start as if nobody had asked it to end.
    _kept.append(number)
    raise SystemExit(0)
