"""What the process that started this one left for it: sockets, and words with it.

systemd passes sockets (sd_listen_fds(3)) and wants to be told of the server's state (sd_notify(3)).
The supervisor of a server with workers passes each worker its place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, NamedTuple

_FIRST: Final = 3  # as sd_listen_fds(3) has it
_WORKER: Final = "REPEATER_WORKER"
_LINK: Final = "REPEATER_WORKER_FD"
_REPORT: Final = "REPEATER_WORKER_REPORT"
_LISTENERS: Final = "REPEATER_WORKER_LISTENERS"

WORKER_VARIABLES: Final = frozenset({_WORKER, _LINK, _REPORT, _LISTENERS})
"""Variables that a supervisor sets for its workers. They are not settings."""


class WorkerPlace(NamedTuple):
    """A worker's number, from 1, and the descriptors that its supervisor passed to it."""

    number: int
    link: int
    """A Unix stream socket: the way to broker, presence and all that workers share."""
    report: int
    """A pipe: takes what the supervisor is to know of the worker's life."""
    listeners: tuple[int, ...]
    """Listening sockets."""


def worker_place() -> WorkerPlace | None:
    """The place of this process if a supervisor started it as a worker, else None."""
    try:
        number, link, report = (int(os.environ[name]) for name in (_WORKER, _LINK, _REPORT))
        listeners = tuple(map(int, os.environ[_LISTENERS].split(",")))
    except (KeyError, ValueError):
        return None
    return WorkerPlace(number, link, report, listeners)


def worker_variables(place: WorkerPlace) -> dict[str, str]:
    """This process's environment, and the place of the worker that gets it."""
    return {
        **os.environ,
        _WORKER: str(place.number),
        _LINK: str(place.link),
        _REPORT: str(place.report),
        _LISTENERS: ",".join(map(str, place.listeners)),
    }


def inherited_descriptors() -> Sequence[int]:
    """The descriptors of the listening sockets that were passed to this process; maybe empty."""
    count, process = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_PID", "")
    if process != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return ()
    return range(_FIRST, _FIRST + int(count))


def service_manager() -> tuple[str, float]:
    """The address of systemd's socket, and the seconds of its watchdog.

    Without systemd the address is empty. Without a watchdog, or if it is for another process, the
    seconds are 0.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    microseconds, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    meant = process in ("", str(os.getpid())) and microseconds.isascii() and microseconds.isdigit()
    return address, int(microseconds) / 1e6 if meant else 0.0
