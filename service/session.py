"""The Centrifugo conversation of one client: a message in, commands in order, replies out.

Replies are pushed to the outbox as they come about and flushed once a message, so a pipelined
burst is answered in one write, and a reply is always queued before what it announces.
"""

from __future__ import annotations

from service import __version__
from service.client import Client
from service.errors import (
    BAD_REQUEST,
    NOT_AVAILABLE,
    DisconnectError,
    ErrorCode,
    IntakeFullError,
    ReplyError,
)
from service.protocol.commands import PONG, Command, PublishRequest, parse_commands
from service.protocol.replies import ConnectResult, Empty, Reply, encode_reply, failure
from service.publication import ClientInfo, Publication

_EMPTY = Empty()


class Session:
    """The state between the commands of one connection. Lives inside its read loop."""

    __slots__ = ("_client",)

    def __init__(self, client: Client) -> None:
        self._client = client

    async def receive(self, message: bytes | str) -> None:
        """Carry out the commands of one message, one after the other.

        A publish may wait for room in the intake, which is how back-pressure reaches the
        client through TCP. A broken rule disconnects the client; commands before it count.
        """
        try:
            if isinstance(message, str):
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
            self._connect(command)
        elif command is PONG:
            return
        elif command.send is not None:
            raise DisconnectError(NOT_AVAILABLE)
        elif command.id <= 0 or command.connect is not None:
            raise DisconnectError(BAD_REQUEST)
        else:
            try:
                reply = await self._answer(command)
            except ReplyError as error:
                reply = Reply(command.id, error=failure(error.code))
            self._push(reply)

    def _push(self, reply: Reply) -> None:
        self._client.outbox.push(self._client.codec.message(encode_reply(reply)))

    def _connect(self, command: Command) -> None:
        """The first command; anonymous only, since this server knows no tokens yet."""
        node = self._client.node
        if command.connect is None or command.id <= 0:
            raise DisconnectError(BAD_REQUEST)
        if not (node.options.insecure or node.options.allow_anonymous):
            raise DisconnectError(BAD_REQUEST)  # no credentials (protocol, section 3.3)
        ping = int(node.options.ping_interval)
        result = ConnectResult(self._client.id, __version__, ping=ping, pong=ping > 0)
        self._push(Reply(command.id, connect=result))
        self._client.became_ready()

    async def _answer(self, command: Command) -> Reply:
        if command.subscribe is not None:
            self._subscribe(command.subscribe.channel)
            return Reply(command.id, subscribe=_EMPTY)
        if command.unsubscribe is not None:
            self._unsubscribe(command.unsubscribe.channel)
            return Reply(command.id, unsubscribe=_EMPTY)
        if command.publish is not None:
            await self._publish(command.publish)
            return Reply(command.id, publish=_EMPTY)
        if command.unavailable:
            raise ReplyError(ErrorCode.NOT_AVAILABLE)
        raise DisconnectError(BAD_REQUEST)

    def _subscribe(self, channel: str) -> None:
        if not channel:
            raise DisconnectError(BAD_REQUEST)
        node = self._client.node
        node.channels.check_subscribe(channel, self._client.user)
        if channel in self._client.channels:
            raise ReplyError(ErrorCode.ALREADY_SUBSCRIBED)
        if len(self._client.channels) >= node.options.channel_limit:
            raise ReplyError(ErrorCode.LIMIT_EXCEEDED)
        self._client.subscribe(channel)

    def _unsubscribe(self, channel: str) -> None:
        if not channel:
            raise DisconnectError(BAD_REQUEST)
        self._client.unsubscribe(channel)

    async def _publish(self, request: PublishRequest) -> None:
        if not request.channel:
            raise DisconnectError(BAD_REQUEST)
        self._client.node.channels.check(
            "publish",
            request.channel,
            self._client.user,
            subscribed=request.channel in self._client.channels,
        )
        publication = Publication(
            request.channel,
            bytes(request.data),
            info=ClientInfo(self._client.user, self._client.id),
        )
        try:
            await self._client.node.publish(publication)
        except IntakeFullError:
            raise ReplyError(ErrorCode.TOO_MANY_REQUESTS) from None
