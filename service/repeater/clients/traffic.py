"""What one client may send: every command and every frame counts against the client's limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.causes import Cause, Why
from repeater.clients.limits import limit_reached
from repeater.clients.throttle import Throttle
from repeater.errors import TOO_MANY_REQUESTS, DisconnectError

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode


def over_limit(node: ClientNode, client: Client, *, publish: bool = False) -> Why | None:
    """Count a command, or whatever else a client sent; return why it is one too many, or None.

    Raises:
        DisconnectError: too many such refusals (3013): the client ignores them.
    """
    limits = node.options.limits
    if not (limits.commands_per_second or limits.publishes_per_second):
        return None
    throttle = client.throttle
    if throttle is None:
        throttle = client.throttle = Throttle()
    limit = throttle.refuse(limits, publish=publish)
    if not limit:
        return None
    node.limited[limit] += 1
    why = limit_reached(limit, getattr(limits, limit))
    if throttle.exhausted(limits):
        text = "the client goes on after refusals_per_minute refusals"
        raise DisconnectError(TOO_MANY_REQUESTS, Why(Cause.LIMIT, f"{text}: {why.text}", why.mend))
    return why


def count_frames(node: ClientNode, client: Client, frames: int) -> None:
    """Count frames that carry no command: pings, fragments, messages that nobody reads.

    They have no reply that could refuse one. Too many of them disconnect the client (3013).
    """
    try:
        for _ in range(frames):
            over_limit(node, client)
    except DisconnectError as error:
        node.refusals.end(client, error.disconnect, error.why, "message")
