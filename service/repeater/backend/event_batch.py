"""Events as the application reads them, in the body of a POST. Values only."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from repeater.backend.options import EventKind


class NotedEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event as the back end reads it. Fields that its kind does not have are left out."""

    id: str
    """Unique for ever, so that a back end can ignore an event that it gets twice."""
    time: int
    """Unix milliseconds."""
    event: EventKind
    seq: int = 0
    """1, 2, 3... within a connection: a missing number means that an event was dropped. Of a
    channel, microseconds: the later event of a channel has the larger number, on all nodes."""
    client: str = ""
    user: str | None = None
    transport: str = ""
    channel: str = ""
    code: int | None = None
    reason: str = ""
    meta: msgspec.Raw | None = None
    node: str = ""
    """The node that was lost."""
    run: str = ""
    """Its last run."""


class Batch(msgspec.Struct, frozen=True):
    """A POST's body. `dropped` counts the events dropped since the server started."""

    run: str
    """Another one after each start of the node: connections of its earlier runs have ended."""
    node: str
    """The node's name, which stays over restarts."""
    dropped: int
    events: Sequence[NotedEvent]
