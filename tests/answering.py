"""HTTP servers that say what a test wants, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trio


@asynccontextmanager
async def answering(answer: bytes | None, request: bytes) -> AsyncIterator[str]:
    """Say this to everybody, whatever is asked, and hang up; None says nothing. Its address.

    Each must ask with this method and path, e.g. `POST /rpc`; the address has the path.
    """

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            received = await stream.receive_some()
            assert received.startswith(request + b" HTTP/1.1\r\n")
            if answer is None:
                await trio.sleep_forever()
            else:
                await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        port = listeners[0].socket.getsockname()[1]
        yield f"http://127.0.0.1:{port}{request.decode().partition(' ')[2]}"
        nursery.cancel_scope.cancel()


def http(body: bytes, length: int | None = None, status: bytes = b"200 OK") -> bytes:
    """An answer; `length` is what it claims, if it lies. A redirect leads to /rpc."""
    size = len(body) if length is None else length
    head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\nLocation: /rpc\r\n\r\n"
    return head % (status, size) + body


@contextmanager
def answering_threads(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The back end on a free port, in threads; its address."""
    handler.log_message = lambda *_: None  # type: ignore[method-assign]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
