"""How an admitted connection becomes a client, the same for every transport.

The request was admitted before; a transport carries the client's bytes. Rule: a condition that may
have changed while the server's first bytes were sent is checked once more here, with no await
before the client is in the hub.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Literal

import msgspec
import trio

from repeater.backend.headers import NONE
from repeater.clients.limits import Place
from repeater.clients.openings import codec_for
from repeater.clients.plain import Greet, Wanted, listening
from repeater.clients.session import Session
from repeater.clients.unidirectional import UnidirectionalSession
from repeater.errors import SHUTDOWN, Disconnect
from repeater.random_id import random_id

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode
    from repeater.clients.conversation import Conversation

Kind = Literal["plain", "bidirectional", "emulated", "unidirectional"]

WaitHangUp = Callable[["Client"], Awaitable[None]]
"""Waits until the peer is gone, or the client was cut."""


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """What was admitted: which conversation, how it begins, and the place that it holds."""

    name: str
    """The transport's, for metrics and logs."""
    kind: Kind
    place: Place
    first: str | bytes = ""
    """The message that came with the request; empty for none, bytes where it is not UTF-8."""
    wanted: Wanted | None = None
    """What a plain subscriber hears; None for the other kinds."""
    credentials: str = ""
    """What the request proved itself with: later requests of an emulated session need the same."""
    headers: Mapping[str, str] = NONE
    """What the back end is to see of the request's headers."""
    protobuf: bool = False
    """Whether the client speaks Protobuf; else JSON, or nothing."""


def begin(node: ClientNode, client: Client, opening: Opening) -> Conversation | None:
    """Make a WebSocket's client what it was admitted as; sync, so that nothing comes between.

    The result is None for a plain subscriber, whose messages are ignored. One that is ready hears
    its channels at once; for others `plain.hear` does the rest, and answers the request. For one
    that gets envelopes, `plain.listening` does all of it.
    """
    _arrive(node, client, opening)
    wanted = opening.wanted
    if wanted is None:
        if opening.kind != "unidirectional":
            return Session(node, client)
        client.session = random_id()
        return UnidirectionalSession(node, client)
    if client.end is None and not wanted.envelope:
        client.identify(wanted.grant)
        if client.ready:
            client.introduce()
            if wanted.grant.expire_at:
                client.expiry_changed()
            for channel in wanted.channels:
                client.subscribe(channel, codec_for(node, client, channel))
    return None


async def converse(
    node: ClientNode,
    client: Client,
    opening: Opening,
    wait_hang_up: WaitHangUp,
    greet: Greet | None = None,
) -> None:
    """Carry on the conversation of a stream until its peer hangs up.

    The caller owns the client and calls `leave` in any case. `greet` answers the request of a plain
    subscriber, when its channels are held; the other kinds are answered already.
    """
    _arrive(node, client, opening)
    if client.end is not None:
        return
    if opening.wanted is not None:
        async with listening(node, client, opening.wanted, greet):
            del greet  # and with it the answer; this frame lives as long as its client
            await wait_hang_up(client)
    elif opening.kind == "unidirectional":
        client.session = random_id()
        await UnidirectionalSession(node, client).receive(opening.first)
        await wait_hang_up(client)
    else:
        session = Session(node, client)
        async with trio.open_nursery() as nursery:
            with node.emulation.open(client, session, nursery, opening.credentials) as emulated:
                emulated.take(opening.first)
                await wait_hang_up(client)
            nursery.cancel_scope.cancel()  # a peer that hung up waits for no answer


def _arrive(node: ClientNode, client: Client, opening: Opening) -> None:
    """Give the client what its request brought, or end it if it would not be admitted any more.

    Behind ASGI the server's answer was awaited between `admit` and here. A user who was blocked
    meanwhile had no client in the hub yet that could be ended, and a shutdown that began meanwhile
    had no client to ask to leave.
    """
    client.place = opening.place
    client.headers = opening.headers
    end: Disconnect | None = None
    if node.draining:
        end = SHUTDOWN
    elif opening.wanted is not None:
        end = node.denials.refusal(opening.wanted.grant)
    if end is not None:
        client.disconnect(end)
