"""What a node looks like at one moment, for health checks, metrics and tests alike."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from service.callback_options import CallbackKind
from service.repeater import RepeaterStatistics


class EndpointStatistics(msgspec.Struct, frozen=True):
    """What became of one address's questions; `asked` is all of them.

    `answered` counts refusals, too. `timeouts` are part of `failed`. `refused` were not sent
    because the circuit was open, `crowded` because their turn did not come in time.
    """

    asked: int
    answered: int
    failed: int
    timeouts: int
    refused: int
    crowded: int
    under_way: int
    waiting: int
    circuit: str
    """`closed`, `open` or `probing`."""
    opened: int
    """How often the circuit did."""


class BackendStatistics(msgspec.Struct, frozen=True):
    """The back end's addresses, by what they are asked."""

    endpoints: Mapping[CallbackKind, EndpointStatistics]


class EventStatistics(msgspec.Struct, frozen=True):
    """How many events wait, were delivered and dropped; `attempts` and `failures` are batches."""

    waiting: int
    delivered: int
    dropped: int
    attempts: int
    failures: int


class NodeStatistics(msgspec.Struct, frozen=True):
    """A snapshot. `ended` counts the connections that ended, by disconnect code.

    `limited` counts what was refused, by the setting that it ran into, or as `blocked` or
    `revoked`; `denials` is how many of these are kept.
    """

    clients: int
    channels: int
    subscriptions: int
    backlogged: int
    draining: bool
    ended: dict[int, int]
    limited: dict[str, int]
    denials: int
    repeater: RepeaterStatistics
    backend: BackendStatistics | None = None
    """None without callbacks."""
    events: EventStatistics | None = None
    """None without event callbacks."""
