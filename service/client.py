"""One connection's life, whatever its transport and protocol.

Owned by the handler of its connection, which reads inside `scope` and calls `leave` at the end.
Ending a client from elsewhere is one of two: *cut* (slow, silent, broken: out of the hub, abort
the socket, cancel the scope) or *disconnect* (asked: out of the hub, cancel the reading, and the
handler says goodbye under a deadline). Both are sync, so nothing can come between their halves.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING
from uuid import uuid4

import trio

from service.errors import CONNECTION_CLOSED, NO_PONG, STALE, Disconnect
from service.log import get_logger
from service.outbox import Outbox

if TYPE_CHECKING:
    from service.hub import Channel
    from service.interfaces import Transport
    from service.node import Node

_log = get_logger("client")


class Client:
    """A connected client. In the hub from its making to `leave`, a cut or a disconnect."""

    __slots__ = (
        "_heard",
        "_id",
        "_node",
        "_pinged",
        "channels",
        "codec",
        "end",
        "heartbeat_slot",
        "outbox",
        "ready",
        "scope",
        "transport",
        "user",
    )

    def __init__(
        self, node: Node, transport: Transport, scope: trio.CancelScope, *, ready: bool
    ) -> None:
        """Take a new connection into the hub.

        Args:
            node: Where it belongs.
            transport: How bytes leave for it.
            scope: Around everything the connection's handler does until the goodbye.
            ready: Whether it is a subscriber already; a Centrifugo client becomes one by its
                `connect` command and is cut as stale without one.
        """
        self._node = node
        self._id = ""
        self._heard = True
        self._pinged = False
        self.transport = transport
        self.scope = scope
        self.codec = transport.codec
        self.outbox = Outbox(transport, node.backlogs, self.cut)
        self.channels: dict[str, Channel] = {}
        self.user = ""
        self.ready = ready
        self.end: Disconnect | None = None
        self.heartbeat_slot = -1
        node.hub.add(self)
        node.heartbeat.schedule(self, self._first_turn())

    @property
    def id(self) -> str:
        """The connection's id, a random UUID made when first asked for."""
        if not self._id:
            self._id = str(uuid4())
        return self._id

    @property
    def node(self) -> Node:
        """The node that it is connected to."""
        return self._node

    def heard(self) -> None:
        """Something arrived, whatever it was: the peer is alive."""
        self._heard = True

    def subscribe(self, channel: str) -> None:
        """Hear a channel from now on."""
        self._node.hub.subscribe(self, channel)

    def unsubscribe(self, channel: str) -> bool:
        """Stop hearing it; False if it was not heard."""
        return self._node.hub.unsubscribe(self, channel)

    def _first_turn(self) -> float:
        options = self._node.options
        if not self.ready:
            return options.stale_timeout
        # Jittered over half an interval, so that a mass reconnect is not pinged at once.
        return options.ping_interval * random.uniform(0.5, 1.0)

    def became_ready(self) -> None:
        """The `connect` command succeeded: pings begin."""
        self.ready = True
        self._node.heartbeat.forget(self)
        self._node.heartbeat.schedule(self, self._first_turn())

    def heartbeat(self) -> float | None:
        """This client's turn: ping it, or cut it for its silence; seconds to its next turn."""
        options = self._node.options
        if not self.ready:
            self.disconnect(STALE)
            return None
        if self.codec.ping is None:
            return options.ping_interval
        if self._pinged and not self._heard:
            self.cut(NO_PONG)
            return None
        if self._pinged:
            self._pinged = False
            return max(0.0, options.ping_interval - options.pong_timeout)
        self._pinged, self._heard = True, False
        self.outbox.send(self.codec.ping)
        return options.pong_timeout

    def cut(self, disconnect: Disconnect) -> None:
        """End it now, without a word: out of the hub, abort the socket, cancel. Idempotent."""
        if self._remove(disconnect):
            self.outbox.close()
            self.transport.abort()
            self.scope.cancel()

    def disconnect(self, disconnect: Disconnect) -> None:
        """Ask it to leave: out of the hub, then its handler says goodbye. Idempotent."""
        if self._remove(disconnect):
            self.scope.cancel()

    def _remove(self, disconnect: Disconnect) -> bool:
        if self.end is not None:
            return False
        self.end = disconnect
        self._node.hub.remove(self)
        self._node.heartbeat.forget(self)
        self._node.count_end(disconnect)
        _log.debug("client left", code=disconnect.code, reason=disconnect.reason)
        return True

    async def leave(self) -> None:
        """The handler's last word: out of the hub, then the goodbye if one is owed.

        Shielded, with the close timeout: a cancelled handler still says why. The connection
        is gone afterwards in any case.
        """
        self._remove(CONNECTION_CLOSED)
        if self.outbox.closed:
            return  # Cut: there is nobody to speak to.
        with trio.CancelScope(shield=True) as goodbye:
            goodbye.deadline = trio.current_time() + self._node.options.close_timeout
            await self._say_goodbye()
        self.outbox.close()
        if goodbye.cancelled_caught:
            self.transport.abort()
        else:
            self.transport.release()

    async def _say_goodbye(self) -> None:
        try:
            await self.outbox.wait_empty()
            if self.end is not None and self.end is not CONNECTION_CLOSED:
                await self.transport.close(self.end)
        except (OSError, trio.ClosedResourceError, trio.BrokenResourceError):
            return  # The peer went first.
