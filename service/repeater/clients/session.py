"""The Centrifugo conversation of one client: a message in, commands in order, replies out.

Replies are pushed to the outbox as they come about and flushed once a message, so a pipelined
burst is answered in one write, and a reply is always queued before what it announces. Commands
wait for those before them: whatever comes with `connect` is carried out when that has finished.
"""

from __future__ import annotations

from repeater.clients.client import Client
from repeater.clients.commands import connect, publish, subscribe
from repeater.clients.throttle import Throttle
from repeater.errors import (
    BAD_REQUEST,
    NOT_AVAILABLE,
    TOO_MANY_REQUESTS,
    DisconnectError,
    ErrorCode,
    ReplyError,
)
from repeater.protocol.centrifugo.commands import PONG, Command, parse_commands
from repeater.protocol.centrifugo.replies import Empty, Reply, encode_reply, failure_of

_EMPTY = Empty()


class Session:
    """The state between the commands of one connection. Lives inside its read loop."""

    __slots__ = ("_client", "_refused", "_throttled")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._throttled: Throttle | None = None
        self._refused = False  # `connect` was answered with an error: nothing more is taken

    async def receive(self, message: str | bytes) -> None:
        """Carry out the commands of one message, one after the other.

        A publish may wait for room in the intake, which is how back-pressure reaches the
        client through TCP. A broken rule disconnects the client; commands before it count.
        """
        try:
            if isinstance(message, bytes):
                raise DisconnectError(BAD_REQUEST)  # a binary frame on a JSON connection
            for command in parse_commands(message):
                if self._client.end is not None:
                    return  # Ended while the last one waited: nothing may enter the hub.
                await self._execute(command)
        except DisconnectError as error:
            self._client.disconnect(error.disconnect)
        self._client.outbox.flush()

    async def _execute(self, command: Command) -> None:
        """One command, checked in upstream's order (protocol, section 2.5)."""
        if not self._client.ready:
            await self._connect(command)
        elif command is PONG:
            return
        elif command.send is not None:
            raise DisconnectError(NOT_AVAILABLE)
        elif not command.valid_id or command.connect is not None:
            raise DisconnectError(BAD_REQUEST)
        else:
            try:
                self._throttle(command)
                await self._answer(command)
            except ReplyError as error:
                self._push(Reply(command.id, error=failure_of(error)))

    def _throttle(self, command: Command) -> None:
        """Count the command, where there is a limit to them.

        Raises:
            ReplyError: there were too many in too short a time (111).
            DisconnectError: too many of those (3013): the client does not listen.
        """
        limits = self._client.node.options.limits
        if not (limits.commands_per_second or limits.publishes_per_second):
            return
        self._throttled = self._throttled or Throttle()
        limit = self._throttled.refuse(limits, publish=command.publish is not None)
        if not limit:
            return
        self._client.node.limited[limit] += 1
        if self._throttled.exhausted(limits):
            raise DisconnectError(TOO_MANY_REQUESTS)
        raise ReplyError(ErrorCode.TOO_MANY_REQUESTS)

    def _push(self, reply: Reply) -> None:
        self._client.outbox.push(self._client.codec.message(encode_reply(reply)))

    async def _connect(self, command: Command) -> None:
        if self._refused or command.connect is None or not command.valid_id:
            raise DisconnectError(BAD_REQUEST)
        try:
            result, joinings = await connect.connect(self._client, command.connect)
        except ReplyError as error:
            self._refused = True
            self._push(Reply(command.id, error=failure_of(error)))
            return
        self._push(Reply(command.id, connect=result))
        await connect.go_live(self._client, joinings)

    async def _answer(self, command: Command) -> None:
        """Carry out the first method that is there, in the protocol's order, and reply."""
        client, reply = self._client, Reply(command.id)
        if command.subscribe is not None:
            await self._subscribe(command)
            return
        if command.unsubscribe is not None:
            if not command.unsubscribe.channel:
                raise DisconnectError(BAD_REQUEST)
            client.unsubscribe(command.unsubscribe.channel)
            reply = Reply(command.id, unsubscribe=_EMPTY)
        elif command.publish is not None:
            await publish.publish(client, command.publish)
            reply = Reply(command.id, publish=_EMPTY)
        elif command.presence is not None:
            presence = await publish.presence(client, command.presence.channel)
            reply = Reply(command.id, presence=presence)
        elif command.presence_stats is not None:
            stats = await publish.presence_stats(client, command.presence_stats.channel)
            reply = Reply(command.id, presence_stats=stats)
        elif command.history is not None:
            history = await publish.history(client, command.history)
            reply = Reply(command.id, history=history)
        elif command.rpc is not None:
            called = await publish.rpc(client, command.rpc)
            reply = Reply(command.id, rpc=called)
        elif command.refresh is not None:
            refreshed = await connect.refresh(client, command.refresh)
            reply = Reply(command.id, refresh=refreshed)
        elif command.sub_refresh is not None:
            refreshed = await subscribe.refresh(client, command.sub_refresh)
            reply = Reply(command.id, sub_refresh=refreshed)
        else:
            raise DisconnectError(BAD_REQUEST)
        self._push(reply)

    async def _subscribe(self, command: Command) -> None:
        assert command.subscribe is not None
        joining = await subscribe.subscribe(self._client, command.subscribe)
        self._push(Reply(command.id, subscribe=joining.result()))
        joining.finish()
        await self._client.node.attendance.announce_join(joining.subscription)
