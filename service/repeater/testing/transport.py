"""The conformance suite of `Transport`.

A transport may take nothing without waiting, as behind an ASGI server, or never be full, as in
memory: the rules about a full one are then kept by having nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Protocol

import trio
from trio.testing import wait_all_tasks_blocked

from repeater.errors import SHUTDOWN, open_service_nursery
from repeater.fanout.transport import Transport
from repeater.testing.rules import expect, hold

_MOST: Final = 64 * 1_048_576  # bytes that no socket's buffers take; who takes them is never full
_CHUNK: Final = b"x" * 65_536
_GOODBYE: Final = 0.1  # seconds for a peer to read it, where no end of its stream follows
_SETTLE: Final = 0.01  # seconds for the kernel to pass bytes on between two sockets


class Peer(Protocol):
    """The other end of a transport, in the suite's hands. Trio's streams are peers."""

    async def receive_some(self) -> bytes:
        """Wait for bytes that the transport sent; empty when it ended its side, or was reset."""

    async def aclose(self) -> None:
        """Hang up."""


OpenTransport = Callable[[], AbstractAsyncContextManager[tuple[Transport, Peer]]]
"""Opens one transport and its peer, connected and empty. Its context manager closes them."""


async def check_transport(open_transport: OpenTransport) -> None:
    """Check that a transport keeps its contract.

    Args:
        open_transport: Opens a transport and its peer for each rule.

    Raises:
        AssertionError: a rule is broken; the text says which.
    """
    await hold(RULES, open_transport)


def _fill(transport: Transport) -> int:
    """Write until the transport takes nothing more; the number of bytes that it took."""
    taken = 0
    while taken < _MOST:
        try:
            size = transport.write(_CHUNK)
        except BlockingIOError:
            break
        _check_size("write", size, len(_CHUNK))
        taken += size
    return taken


def _check_size(what: str, size: int, most: int) -> None:
    if not 1 <= size <= most:
        raise AssertionError(f"{what}: of {most} bytes it says that it took {size}")


async def _send(transport: Transport, data: bytes) -> None:
    while data:
        size = await transport.send_some(data)
        _check_size("send_some", size, len(data))
        data = data[size:]


async def _receive(peer: Peer, size: int) -> bytes:
    received = b""
    while len(received) < size:
        chunk = await peer.receive_some()
        if not chunk:
            raise AssertionError(f"the end came after {len(received)} bytes of {size}")
        received += chunk
    return received


async def bytes_arrive(open_transport: OpenTransport) -> None:
    """What `write` and `send_some` say that they took arrives whole and in order."""
    async with open_transport() as (transport, peer), open_service_nursery() as nursery:

        async def send() -> None:
            for number in range(20):
                chunk = b"%09d;" % number
                if number % 2:
                    with suppress(BlockingIOError):
                        size = transport.write(chunk)
                        _check_size("write", size, len(chunk))
                        chunk = chunk[size:]
                await _send(transport, chunk)

        nursery.start_soon(send)
        wanted = b"".join(b"%09d;" % number for number in range(20))
        expect("what arrived", await _receive(peer, len(wanted)), wanted)


async def full_is_said(open_transport: OpenTransport) -> None:
    """Full, `write` raises BlockingIOError, and `send_some` goes on when there is room."""
    async with open_transport() as (transport, peer), open_service_nursery() as nursery:
        taken = _fill(transport)
        if taken >= _MOST:
            return
        done = trio.Event()

        async def send() -> None:
            await _send(transport, b"last")
            done.set()

        nursery.start_soon(send)
        await wait_all_tasks_blocked(_SETTLE)
        received = await _receive(peer, taken + len(b"last"))
        await done.wait()
        expect("the last bytes", received[-4:], b"last")
        expect("bytes that arrived", len(received), taken + 4)


async def a_cancelled_send(open_transport: OpenTransport) -> None:
    """A `send_some` that is cancelled while it waits has sent nothing."""
    async with open_transport() as (transport, peer):
        taken = _fill(transport)
        if not 0 < taken < _MOST:
            return
        with trio.CancelScope() as scope:
            async with open_service_nursery() as nursery:

                async def send() -> None:
                    await transport.send_some(b"never")
                    raise AssertionError("send_some did not wait for room")

                nursery.start_soon(send)
                await wait_all_tasks_blocked(_SETTLE)
                scope.cancel()
        async with open_service_nursery() as nursery:
            nursery.start_soon(_send, transport, b"last")
            received = await _receive(peer, taken + len(b"last"))
        expect("what follows", received[taken:], b"last")


async def abort_ends_writing(open_transport: OpenTransport) -> None:
    """After `abort`, which may come twice, `write` raises OSError, `send_some` that or Closed."""
    async with open_transport() as (transport, _):
        transport.abort()
        transport.abort()
        try:
            transport.write(b"x")
        except OSError:
            pass
        else:
            raise AssertionError("write did not raise")
        try:
            await transport.send_some(b"x")
        except (OSError, trio.ClosedResourceError):
            pass
        else:
            raise AssertionError("send_some did not raise")


async def abort_wakes_who_waits(open_transport: OpenTransport) -> None:
    """`abort` ends a `send_some` that waits for room."""
    async with open_transport() as (transport, _), open_service_nursery() as nursery:
        if not 0 < _fill(transport) < _MOST:
            return
        woken = trio.Event()

        async def send() -> None:
            try:
                await transport.send_some(b"x")
            except (OSError, trio.ClosedResourceError):
                woken.set()
            else:
                raise AssertionError("send_some did not raise")

        nursery.start_soon(send)
        await wait_all_tasks_blocked(_SETTLE)
        transport.abort()
        await woken.wait()


async def release_is_idempotent(open_transport: OpenTransport) -> None:
    """`release` may come twice, and before and after `abort`."""
    async with open_transport() as (transport, _):
        transport.release()
        transport.release()
        transport.abort()
        transport.release()


async def a_goodbye(open_transport: OpenTransport) -> None:
    """`close` says goodbye behind what was sent, and returns when the peer has hung up."""
    async with open_transport() as (transport, peer), open_service_nursery() as nursery:

        async def hang_up() -> None:
            await _receive(peer, len(b"first"))
            with trio.move_on_after(_GOODBYE):
                while await peer.receive_some():
                    pass
            await peer.aclose()

        nursery.start_soon(hang_up)
        await _send(transport, b"first")
        await transport.close(SHUTDOWN)
        transport.release()


async def an_address(open_transport: OpenTransport) -> None:
    """`address` is a text, also once the connection has ended, when it may be empty."""
    async with open_transport() as (transport, _):
        expect("address", type(transport.address()), str)
        transport.abort()
        expect("address after abort", type(transport.address()), str)


async def a_name_and_a_codec(open_transport: OpenTransport) -> None:
    """A transport has the name of its kind, and the codec that its client is spoken to with."""
    async with open_transport() as (transport, _):
        expect("name", bool(transport.name), True)
        expect("codec", type(transport.codec.name), str)


RULES: Final = (
    bytes_arrive,
    full_is_said,
    a_cancelled_send,
    abort_ends_writing,
    abort_wakes_who_waits,
    release_is_idempotent,
    a_goodbye,
    an_address,
    a_name_and_a_codec,
)
