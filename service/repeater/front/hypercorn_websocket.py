"""A WebSocket behind Hypercorn, with the rules of the native one.

No extension is negotiated, a dead peer is found by its missing pongs, control frames and small
fragments are counted, and what breaks the protocol is answered with its close code.
"""

from __future__ import annotations

import random
import re
from base64 import b64decode
from typing import TYPE_CHECKING, Any, Final

import trio
from hypercorn.protocol.events import Body, Data, EndBody, EndData, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WSStream
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping, Pong
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError

from repeater.clients.throttle import Throttle
from repeater.errors import NO_PONG, TOO_MANY_REQUESTS
from repeater.protocol.websocket.frames import SMALL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from repeater.front.handed_connection import Link

_EXTENSIONS: Final = b"sec-websocket-extensions"
_KEY: Final = b"sec-websocket-key"
_SUBPROTOCOLS: Final = b"sec-websocket-protocol"
_VERSION: Final = b"sec-websocket-version"
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2


def seen_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of a request that Hypercorn may see.

    It would negotiate permessage-deflate, which takes some 93 KiB a connection, and unpacks a
    message before its size is known. It accepts every key, and fails on subprotocols that are not
    ASCII. The native way answers 400 to both, and Hypercorn does to a handshake without a version.
    """
    pairs = [pair for pair in headers if pair[0] != _EXTENSIONS]
    keys = [value for name, value in pairs if name == _KEY]
    offers = [value for name, value in pairs if name == _SUBPROTOCOLS]
    if len(keys) < 2 and all(map(_is_key, keys)) and all(map(_are_tokens, offers)):
        return pairs
    return [pair for pair in pairs if pair[0] not in (_SUBPROTOCOLS, _VERSION)]


def _is_key(value: bytes) -> bool:
    """Whether these are 16 bytes in Base64 (RFC 6455, section 4.1)."""
    try:
        return len(b64decode(value.strip(), validate=True)) == 16
    except ValueError:
        return False


def _are_tokens(value: bytes) -> bool:
    names = [one.strip(b" \t") for one in value.split(b",")]
    return any(names) and all(_TOKEN.fullmatch(one) for one in names if one)


class WebSocketStream(WSStream):
    """One WebSocket of a handed-over connection. Owned by the connection's protocol."""

    def __init__(self, link: Link, abort: Callable[[], None], *parts: Any) -> None:
        """Take `abort`, which resets this WebSocket, and Hypercorn's own arguments."""
        super().__init__(*parts)
        self._link = link
        self._abort = abort
        self._heard = False
        self._pinged = False
        self._ending = False
        self._pong: Pong | None = None  # the answer under way, or the one that is next
        self._throttle = Throttle()

    @property
    def undecided(self) -> bool:
        """Whether the application has not answered the handshake yet."""
        return self.state is ASGIWebsocketState.HANDSHAKE and not self.closed

    @property
    def _refused(self) -> bool:
        """Whether the application has answered that it takes no WebSocket."""
        return self.state in (ASGIWebsocketState.RESPONSE, ASGIWebsocketState.HTTPCLOSED)

    async def handle(self, event: Any) -> None:
        """As Hypercorn's; a peer that ended its side has left."""
        if isinstance(event, Body | Data) and self._refused:
            return  # Hypercorn would answer them with 400, behind the application's answer
        if isinstance(event, Body | Data) and not self.closed and self.handshake.accepted:
            self._heard = True
            if self._ending or self.connection.state is ConnectionState.CLOSED:
                return  # bytes behind the closing handshake
        if isinstance(event, EndBody | EndData) and not self.closed:
            await self.send(StreamClosed(stream_id=self.stream_id))
            return
        open_before = not self.closed
        await super().handle(event)
        if open_before and self.closed and not isinstance(event, StreamClosed):
            await self._end_refused()

    async def _end_refused(self) -> None:
        """End the request that Hypercorn answered with 400 and forgot.

        Its handshake is invalid, or frames came before the answer to it.
        """
        if self.app_put is not None:
            code = CloseReason.ABNORMAL_CLOSURE.value
            await self.app_put({"type": "websocket.disconnect", "code": code})
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            await self._link.give_way()
            if self._counts(event) and self._too_many():
                self._end(TOO_MANY_REQUESTS.code, TOO_MANY_REQUESTS.reason)
                return
            if isinstance(event, Message):
                try:
                    self.buffer.extend(event)
                except FrameTooLargeError:
                    self._end(CloseReason.MESSAGE_TOO_BIG)
                    return
                if event.message_finished:
                    assert self.app_put is not None
                    await self.app_put(self.buffer.to_message())
                    self.buffer.clear()
            elif isinstance(event, Ping):
                self._answer(event)
            elif isinstance(event, CloseConnection):
                if self.connection.state is ConnectionState.REMOTE_CLOSING:
                    self._close(event.response())
                elif self.connection.state is ConnectionState.OPEN:  # the frames are invalid
                    self._end(event.code, event.reason)
                else:
                    await self.send(StreamClosed(stream_id=self.stream_id))
                return

    def _answer(self, ping: Ping) -> None:
        """Answer the newest ping (RFC 6455, section 5.5.3) in a task of its own.

        The reader must not wait for room: in HTTP/2 it is the reader that hears of room.
        """
        waits, self._pong = self._pong, ping.response()
        if waits is None:
            self._link.requests.spawn(self._send_pongs)

    async def _send_pongs(self) -> None:
        while (pong := self._pong) is not None:
            await self._send_wsproto_event(pong)
            if self._pong is pong:
                self._pong = None

    def _counts(self, event: Any) -> bool:
        """Whether an event counts as a command: pings, other pongs than ours, small fragments."""
        if isinstance(event, Message):
            part = event.frame_finished and not event.message_finished
            return bool(part and len(event.data) < SMALL)
        if isinstance(event, Pong):
            asked, self._pinged = self._pinged, False
            return not asked
        return isinstance(event, Ping)

    def _too_many(self) -> bool:
        limits = self._link.options.limits
        return bool(
            self._throttle.refuse(limits, publish=False) and self._throttle.exhausted(limits)
        )

    def _end(self, code: int, reason: str | None = None) -> None:
        """Close with a code, and tell the application that the peer has gone."""
        self._close(CloseConnection(code=code, reason=reason))

    def _close(self, close: CloseConnection) -> None:
        """Send the last frame in a task of its own, as pongs; nothing that comes later is read."""
        self._ending = True
        try:
            data = self.connection.send(close)
        except LocalProtocolError:  # the application has closed it already
            data = b""
        self._link.requests.spawn(self._send_last, data)

    async def _send_last(self, data: bytes) -> None:
        if data:
            await self.send(Data(stream_id=self.stream_id, data=data))
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _accept(self, message: Any) -> None:
        await super()._accept(message)
        self._link.wake()  # frames that came with the request were kept until now

    async def _send_pings(self) -> None:
        """Ping in the rhythm of the native way, and reset a peer that does not answer."""
        options = self._link.options
        await trio.sleep(options.ping_interval * random.uniform(0.5, 1.0))
        while not self.closed:
            self._heard, self._pinged = False, True
            await self._send_wsproto_event(Ping())
            await trio.sleep(options.pong_timeout)
            if not self._heard and not self.closed:
                assert self.app_put is not None
                await self.app_put({"type": "websocket.disconnect", "code": NO_PONG.code})
                self._abort()
                return
            await trio.sleep(max(0.0, options.ping_interval - options.pong_timeout))
