"""One address for several servers: each connection goes to the first of them that answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import trio

Cut = Callable[[trio.SocketStream], AsyncGenerator[bytes, None]]


class Relay:
    """Lives inside the nursery that runs `run`; its connections end with it."""

    def __init__(self, ports: Sequence[int], cut: Cut | None = None) -> None:
        """Carry for these servers; `cut` says in which parts their bytes come to the clients."""
        self._ports = ports
        self._cut = cut or _as_they_come
        self.port = 0
        """Its own, once `run` has started."""
        self._open = trio.Event()
        self._open.set()

    def hold(self) -> None:
        """Have new connections wait until `let_in`."""
        self._open = trio.Event()

    def let_in(self) -> None:
        """Have connections go on."""
        self._open.set()

    async def run(self, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        """Carry bytes until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._carry, listeners, task_status=task_status)

    async def _carry(self, client: trio.SocketStream) -> None:
        await self._open.wait()
        server = await self._connected()
        if server is None:
            return  # `serve_listeners` closes the client's connection
        async with server, trio.open_nursery() as nursery:
            end = nursery.cancel_scope
            nursery.start_soon(_copy, _as_they_come(client), server, end)
            nursery.start_soon(_copy, self._cut(server), client, end)

    async def _connected(self) -> trio.SocketStream | None:
        for port in self._ports:
            try:
                return await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                continue
        return None


async def _as_they_come(source: trio.SocketStream) -> AsyncGenerator[bytes, None]:
    async for data in source:
        yield bytes(data)


async def first_event_joined(source: trio.SocketStream) -> AsyncGenerator[bytes, None]:
    """An event stream's head, its opening and its first event in one part; the rest as it comes."""
    first = b""
    async for data in source:
        first += data
        _, found, body = first.partition(b"\r\n\r\n")
        if found and (b"text/event-stream" not in first or b"data: " in body):
            break
    yield first
    async for data in source:
        yield bytes(data)


async def byte_by_byte(source: trio.SocketStream) -> AsyncGenerator[bytes, None]:
    """Each byte in a part of its own."""
    async for data in source:
        for place in range(len(data)):
            yield bytes(data[place : place + 1])


async def _copy(
    parts: AsyncGenerator[bytes, None], sink: trio.SocketStream, end: trio.CancelScope
) -> None:
    """Copy until one of them has ended; then both end."""
    try:
        async with aclosing(parts):
            async for data in parts:
                await sink.send_all(data)
    except trio.BrokenResourceError:
        pass  # reset
    end.cancel()
