"""The Centrifugo conversation of one client: a message in, commands in order, replies out.

Each reply is pushed to the outbox when it is ready, and the outbox is flushed at a message's end:
a pipelined burst is answered in one write. Before that the outbox flushes by itself when its bytes
are many, and the session does before it gives way to others, which it does each millisecond. A
reply is always queued before what it announces. A command waits for the commands before it: those
that come with `connect` run after `connect`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from repeater.causes import Cause, Why
from repeater.clients.client import Client
from repeater.clients.commands import (
    connect,
    history,
    presence,
    publish,
    refresh,
    rpc,
    subscribe,
)
from repeater.clients.commands.subscribe import NO_CHANNEL
from repeater.clients.openings import codec_for
from repeater.clients.traffic import over_limit
from repeater.errors import (
    BAD_REQUEST,
    NOT_AVAILABLE,
    Disconnect,
    DisconnectError,
    ErrorCode,
    ReplyError,
    end_for,
)
from repeater.protocol.centrifugo.commands import (
    PONG,
    BadCommand,
    Command,
    SubscribeRequest,
)
from repeater.protocol.centrifugo.replies import Empty, Reply, failure_of

if TYPE_CHECKING:
    from repeater.clients.contract import ClientNode

_EMPTY = Empty()
_NO_SEND: Final = Why(Cause.NOT_OFFERED, "nobody takes a send", "use publish or rpc of the SDK")
_NO_ID: Final = Why(Cause.REQUEST, "the command has no id from 1 to 4294967295")
_SECOND_CONNECT: Final = Why(Cause.REQUEST, "the client is connected already", "connect once")
_NOT_CONNECTED: Final = Why(
    Cause.REQUEST, "the first command is not connect", "send connect, and wait for its reply"
)
_NO_METHOD: Final = Why(
    Cause.REQUEST, "the command has no method that the server knows", "see docs/protocol.md"
)
_LITTLE: Final = 8  # the part of an outbox that may wait while a large answer is added


class Session:
    """The state between the commands of one connection. Lives inside its read loop."""

    __slots__ = ("_client", "_failed", "_node")

    def __init__(self, node: ClientNode, client: Client) -> None:
        self._node = node
        self._client = client
        # How the connection ends if more comes after a `connect` that was answered with an error.
        self._failed: Disconnect | None = None

    async def receive(self, message: str | bytes) -> None:
        """Carry out the commands of one message, one after the other.

        A publish may wait for room in the intake. The connection is not read meanwhile, and so
        back-pressure reaches the client through TCP. A command that breaks the protocol
        disconnects the client; the commands before it stay carried out.
        """
        turns = self._node.turns
        current = PONG  # while the next command is read
        try:
            for command in self._client.codec.format.commands(message):
                if self._client.end is not None:
                    return  # The client ended during the last command, and must not join the hub.
                current = command
                await self._execute(command)
                current = PONG
                if self._failed is not None:
                    break  # what was sent along with a refused `connect` gets no answer
                if turns.over:
                    self._client.outbox.flush()
                    await turns.next()
        except DisconnectError as error:
            what, channel = current.subject
            end, what = error.disconnect, what or "message"
            self._node.refusals.end(self._client, end, error.why, what, channel)
        self._client.outbox.flush()

    async def _execute(self, command: Command) -> None:
        """Carry out one command, checked in upstream's order (protocol, section 2.5)."""
        if not self._client.ready:
            await self._connect(command)
        elif command is PONG:
            self._take_pong()
        elif command.send is not None:
            raise DisconnectError(NOT_AVAILABLE, _NO_SEND)
        elif not command.valid_id or command.connect is not None:
            raise DisconnectError(BAD_REQUEST, _SECOND_CONNECT if command.valid_id else _NO_ID)
        else:
            try:
                over = over_limit(self._node, self._client, publish=command.publish is not None)
                if over is not None:
                    raise ReplyError(ErrorCode.TOO_MANY_REQUESTS, why=over)
                await self._answer(command)
            except ReplyError as error:
                self._refuse(command, error)

    def _refuse(self, command: Command, error: ReplyError) -> None:
        """Answer a command that cannot be carried out, and log why."""
        refusals, (what, channel) = self._node.refusals, command.subject
        refusals.note(error.why, what, self._client, code=int(error.code), channel=channel)
        self._push(Reply(command.id, error=failure_of(refusals.explained(error))))

    def _take_pong(self) -> None:
        """A pong that answers a ping is free; others count as commands, and have no reply."""
        if not self._client.answered_ping():
            over_limit(self._node, self._client)

    def _push(self, reply: Reply) -> None:
        self._client.outbox.push(self._client.codec.reply(reply))

    async def _connect(self, command: Command) -> None:
        if self._failed is not None:
            # An SDK sent more before it had the answer, which has told it whether to come back.
            # An end for good would undo that.
            self._client.disconnect(self._failed)
            return
        if command.connect is None or not command.valid_id:
            raise DisconnectError(BAD_REQUEST, _NOT_CONNECTED if command.valid_id else _NO_ID)
        try:
            connected = await connect.connect(self._node, self._client, command.connect)
        except ReplyError as error:
            self._failed = end_for(error)
            self._refuse(command, error)
            return
        say = connected.codec.reply
        connected.complete(lambda result: say(Reply(command.id, connect=result)))
        connected.announce()

    async def _answer(self, command: Command) -> None:
        """Carry out the command's first method, in the protocol's order, and reply."""
        if type(command) is BadCommand:
            raise ReplyError(ErrorCode.BAD_REQUEST, why=Why(Cause.REQUEST, str(command.fault)))
        node, client, number = self._node, self._client, command.id
        if command.subscribe is not None:
            await self._subscribe(number, command.subscribe)
            return
        if command.unsubscribe is not None:
            if not command.unsubscribe.channel:
                raise DisconnectError(BAD_REQUEST, NO_CHANNEL)
            client.unsubscribe(command.unsubscribe.channel)
            reply = Reply(number, unsubscribe=_EMPTY)
        elif command.publish is not None:
            await publish.publish(node, client, command.publish)
            reply = Reply(number, publish=_EMPTY)
        elif command.presence is not None:
            await self._wait_for_room()
            members = await presence.presence(node, client, command.presence.channel)
            reply = Reply(number, presence=members)
        elif command.presence_stats is not None:
            stats = await presence.presence_stats(node, client, command.presence_stats.channel)
            reply = Reply(number, presence_stats=stats)
        elif command.history is not None:
            await self._wait_for_room()
            past = await history.history(node, client, command.history)
            codec = codec_for(node, client, command.history.channel)
            client.outbox.push(codec.reply(Reply(number, history=past)))
            return
        elif command.rpc is not None:
            called = await rpc.rpc(node, client, command.rpc)
            reply = Reply(number, rpc=called)
        elif command.refresh is not None:
            refreshed = await refresh.refresh(node, client, command.refresh)
            reply = Reply(number, refresh=refreshed)
        elif command.sub_refresh is not None:
            refreshed = await refresh.sub_refresh(node, client, command.sub_refresh)
            reply = Reply(number, sub_refresh=refreshed)
        else:
            raise DisconnectError(BAD_REQUEST, _NO_METHOD)
        self._push(reply)

    async def _wait_for_room(self) -> None:
        """Let the client take what waits for it, before an answer is made that may be large.

        The answer stands behind what waits in any case. Without the wait, the answers of one
        message could exceed the outbox together. Half the time for a pong is the deadline, since
        pongs are not read meanwhile; a checkpoint only where something waits.
        """
        outbox = self._client.outbox
        if outbox.waiting > self._node.options.outbox_limit // _LITTLE:
            with trio.move_on_after(self._node.options.pong_timeout / 2):
                await outbox.wait_empty()

    async def _subscribe(self, number: int, request: SubscribeRequest) -> None:
        if request.recover:
            await self._wait_for_room()
        joining = await subscribe.subscribe(self._node, self._client, request)
        say = joining.subscription.codec.reply
        joining.complete(lambda result: say(Reply(number, subscribe=result)))
        self._node.attendance.announce_join(joining.subscription)
