"""What an adapter is: how to start a server, how to subscribe to it, how to publish into it.

An adapter says so in bytes, so that one load generator serves every server and none of them is
measured through a client library of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.generator.protocol import Entry, Greeting

Capability = Literal["channels", "calls", "batch", "stream", "recovery", "tls"]
"""What a workload may need besides subscribing and publishing:

* `channels`: one connection may hear several channels;
* `calls`: publishing is an HTTP request with an answer;
* `batch`, `stream`, `recovery`, `tls`: Repeater's own.
"""


def _present() -> str | None:
    return None


def _nothing() -> Mapping[str, str]:
    return {}


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter. Values and pure functions only: a started one is a `servers.Child`."""

    name: str
    """Short, for options and JSON, e.g. `nchan`."""
    title: str
    """For tables, with its language, e.g. `Nchan (nginx, C)`."""
    version: Callable[[], str]
    command: Callable[[Path], Sequence[str]]
    """The command line, `PORT` for the port; configuration is written into the folder given,
    which is the turn's own. A word may contain PORT as well: it is replaced in the files too."""
    subscribe: Callable[[Sequence[str]], Greeting]
    """How one connection subscribes to these channels."""
    entry: Callable[[Sequence[str]], Entry]
    """How a back end publishes into these channels, one event at a time."""
    flood: Callable[[Sequence[str]], Entry] | None = None
    """The fastest documented way in on one connection, where it is another."""
    missing: Callable[[], str | None] = _present
    """Why it can't run here, with what would install it; None if it can."""
    configuration: Callable[[], str]
    """What the documentation shows: the configuration file, or the program's path."""
    settings: Callable[[], Mapping[str, str]] = _nothing
    """Environment variables."""
    capabilities: frozenset[Capability] = frozenset()
    most: int = 10_000
    """Subscribers up to which it is measured; a reason is in `most_because`."""
    most_because: str = ""
    ordinary: bool = True
    """Whether it takes part wherever it can; otherwise only where a workload names it."""
    core: bool = True
    """Whether it is in the core table, which is to take minutes."""
    baseline: bool = False
    """Whether it is what the design departs from: in the broader workloads, where each of its turns
    is long, it would show again what the others have shown."""
    variant_of: str = ""
    """The peer of which this is another way to subscribe, e.g. Repeater by Server-Sent Events."""
    quiet_first: bool = False
    """Whether subscribers hear something when others subscribe (joins), to be waited out."""
    secure: bool = False
    """Whether it speaks TLS."""
    floor: bool = False
    """Whether it is a lower bound, and no server that anyone could use."""

    @property
    def flooding(self) -> Callable[[Sequence[str]], Entry]:
        """The way in for a flood."""
        return self.entry if self.flood is None else self.flood
