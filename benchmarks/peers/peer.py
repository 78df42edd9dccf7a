"""The adapter of a server: how to start it, how to subscribe to it, how to publish into it.

An adapter gives this in bytes, so that one load generator measures every server, and no server is
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
    """An adapter. Values and pure functions only: a started server is a `servers.Child`."""

    name: str
    """Short, for options and JSON, e.g. `nchan`."""
    title: str
    """For tables, with its language, e.g. `Nchan (nginx, C)`."""
    version: Callable[[], str]
    command: Callable[[Path], Sequence[str]]
    """Returns the command line, with `PORT` for the port, also inside a word. Writes configuration
    into the folder, which belongs to the turn; PORT is replaced in these files too."""
    subscribe: Callable[[Sequence[str]], Greeting]
    """How one connection subscribes to these channels."""
    entry: Callable[[Sequence[str]], Entry]
    """How a back end publishes into these channels, one event at a time."""
    flood: Callable[[Sequence[str]], Entry] | None = None
    """The fastest documented way to publish on one connection, if it is not `entry`."""
    missing: Callable[[], str | None] = _present
    """Why the server cannot run here, and what would install it; None if it can."""
    configuration: Callable[[], str]
    """The configuration file or the program's path, for the documentation."""
    settings: Callable[[], Mapping[str, str]] = _nothing
    """The server's environment variables."""
    capabilities: frozenset[Capability] = frozenset()
    most: int = 10_000
    """The most subscribers with which it is measured; `most_because` gives the reason."""
    most_because: str = ""
    ordinary: bool = True
    """Whether it takes part wherever it can; otherwise only where a workload names it."""
    core: bool = True
    """Whether it is in the core table, which takes a few minutes."""
    baseline: bool = False
    """Whether it is a baseline of the design. Broader workloads leave baselines out: their turns
    are long there and show nothing new."""
    variant_of: str = ""
    """The peer to which this is another way to subscribe, e.g. by Server-Sent Events."""
    quiet_first: bool = False
    """Whether subscribers hear when others subscribe (joins); the turn waits until that ends."""
    secure: bool = False
    """Whether it speaks TLS."""
    health: str = ""
    """The path of its health check; empty without one."""
    page: str = ""
    """The path of a long answer that everybody may get; empty: the health check's."""
    floor: bool = False
    """Whether it is a lower bound and not a usable server."""

    @property
    def flooding(self) -> Callable[[Sequence[str]], Entry]:
        """The way in which a flood publishes."""
        return self.entry if self.flood is None else self.flood
