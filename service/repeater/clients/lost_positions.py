"""Why a subscriber that comes back does not get what it missed, in words for the log.

It is no error to the client, which is told as always: `recovered: false`, a `reset`, or an end
after which it comes back. But who runs the server should see which setting it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from repeater.causes import Cause, Why
from repeater.errors import ReplyError
from repeater.fanout.recovery import Loss
from repeater.protocol.sse.event_id import UNKNOWN

if TYPE_CHECKING:
    from repeater.clients.contract import ClientNode
    from repeater.clients.subscription import Subscription
    from repeater.fanout.recovery import Joined
    from repeater.publication import StreamPosition

_SHOWN: Final = 40
"""Characters of an epoch that a client names."""


def why_lost(
    node: ClientNode,
    subscription: Subscription,
    joined: Joined | None,
    since: StreamPosition | None,
) -> Why:
    """Why this subscription, which asked for the past, does not get it.

    `since` is the position that it named; None if it asked for the past in another way.
    """
    text, mend = _words(node, subscription, joined, since)
    return Why(Cause.RECOVERY, text, mend)


def _words(
    node: ClientNode,
    subscription: Subscription,
    joined: Joined | None,
    since: StreamPosition | None,
) -> tuple[str, str]:
    name = subscription.channel.name
    table = node.channels.table(name)
    keeping = f"history_size and history_ttl in {table}"
    if joined is None or not subscription.recoverable:
        if not _keeps_history(node, name):
            return "the channel keeps no history", f"set {keeping}"
        text = "the client may not recover in the channel, or did not ask for it"
        return text, f"set force_recovery = true, or allow_recovery = true, in {table}"
    most = node.options.recovery_limit
    room = f"half of outbox_limit ({node.options.outbox_limit // 2} bytes)"
    top, loss = joined.position, joined.loss
    if loss is Loss.ROOM:
        return f"what it asks for is more than {room}", "raise outbox_limit"
    if loss is Loss.MEANWHILE:
        return f"what was published meanwhile is more than {room}", "raise outbox_limit"
    if since is None:
        text = f"older publications are not kept, or are more than recovery_limit ({most})"
        return text, f"raise {keeping}, and recovery_limit"
    if loss is Loss.LIMIT:
        missed = top.offset - since.offset
        return f"it missed {missed}, more than recovery_limit ({most})", "raise recovery_limit"
    if loss is Loss.HISTORY:
        text = f"what came after offset {since.offset} is not all kept (now at {top.offset})"
        return text, f"raise {keeping}"
    return _of_stream(since, top, loss)


def _of_stream(since: StreamPosition, top: StreamPosition, loss: Loss | None) -> tuple[str, str]:
    """What is lost with the stream, and not only with its history."""
    if since == UNKNOWN:
        return "its id is not one of these channels", "come back with the same channels"
    if loss is Loss.EPOCH:
        text = f"the stream has begun anew: epoch {top.epoch!r}, and not {since.epoch[:_SHOWN]!r}"
        return text, "keep histories over a restart: see data_dir, engine and history_meta_ttl"
    if loss is Loss.END:
        text = f"it is at offset {since.offset}, and the stream ends at {top.offset}"
        return text, "the engine has lost its end: see durability"
    return "some of it did not come from the engine", "if it happens often, look at the engine"


def _keeps_history(node: ClientNode, channel: str) -> bool:
    try:
        return bool(node.channels.options(channel).history_size)
    except ReplyError:
        return False  # a public channel without a namespace
