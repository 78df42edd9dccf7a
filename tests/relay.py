"""One address for several servers: each connection goes to the first of them that answers."""

from __future__ import annotations

from collections.abc import Sequence

import trio


class Relay:
    """Lives inside the nursery that runs `run`; its connections end with it."""

    def __init__(self, ports: Sequence[int], *, joins: bool = False) -> None:
        """Carry for these servers; with `joins`, an event stream's first bytes come in one segment.

        They are the head, the opening and the first event.
        """
        self._ports = ports
        self._joins = joins
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
            nursery.start_soon(_copy, client, server, nursery.cancel_scope)
            if self._joins:
                await client.send_all(await _first_event(server))
            nursery.start_soon(_copy, server, client, nursery.cancel_scope)

    async def _connected(self) -> trio.SocketStream | None:
        for port in self._ports:
            try:
                return await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                continue
        return None


async def _first_event(server: trio.SocketStream) -> bytes:
    """All bytes up to the first event; of an answer that is no event stream, what comes first."""
    received = b""
    while chunk := await server.receive_some():
        received += chunk
        _, found, body = received.partition(b"\r\n\r\n")
        if found and (b"text/event-stream" not in received or b"data: " in body):
            break
    return received


async def _copy(source: trio.SocketStream, sink: trio.SocketStream, end: trio.CancelScope) -> None:
    """Copy until one of them has ended; then both end."""
    try:
        async for data in source:
            await sink.send_all(data)
    except trio.BrokenResourceError:
        pass  # reset
    end.cancel()
