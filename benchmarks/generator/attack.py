"""The attackers' process: sends one flood from some loopback addresses until its input ends.

Usage: python -m benchmarks.generator.attack <ORDER >TALLY. An `Order` comes on the standard input,
the `Tally` goes to the standard output when the input has ended, both in MessagePack. One epoll
loop without a task drives every connection. It sends prebuilt bytes, so that the server is busy
before the attackers' core is. `attackers` starts this process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import ssl
import struct
import sys
import time
from collections import deque
from typing import Final, Self

import msgspec

from benchmarks.generator.floods import Flood
from repeater.front.tls import HTTP2, TLSSocket

FIRST_ADDRESS: Final = 2
"""The first attacker's address is 127.0.0.2; the honest ones have 127.0.0.1."""
_RESET: Final = struct.pack("ii", 1, 0)
_AT_ONCE: Final = 256  # events of one look at the poller
_SENDS: Final = 4  # bursts that one connection sends before the others have their turn
_STREAMS: Final = 1_000  # HTTP/2 streams in one burst
_RETRY: Final = 0.01  # seconds; only after a connection that could not begin
_UNREAD_BUFFER: Final = 4_096  # bytes that the kernel takes for a connection that does not read
_TAIL: Final = 65_536  # bytes of an answer in which a step's end is looked for
_BIND_ADDRESS_NO_PORT: Final = 24  # Linux: `connect` chooses the port, so each peer has its own
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_BROKEN: Final = select.EPOLLERR | select.EPOLLHUP | select.EPOLLRDHUP
_INPUT: Final = 0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to attack, and how."""

    port: int
    flood: Flood
    attackers: int
    """Each has an address of its own."""


class Tally(msgspec.Struct, kw_only=True):
    """What the attackers achieved."""

    sent: int = 0
    """Bytes that the kernel took, before TLS."""
    opened: int = 0
    """Connections that were begun."""
    cut: int = 0
    """Connections that the server ended, or refused."""
    cpu_s: float = 0.0
    """CPU seconds of this process during the attack."""


class _LeftError(Exception):
    """The connection's script has ended; the attacker leaves."""


class Connection:
    """One connection, and how far its script has come."""

    __slots__ = (
        "attacker",
        "interest",
        "number",
        "received",
        "shaking",
        "socket",
        "step",
        "unsent",
    )

    def __init__(self, attacker: int, sock: socket.socket) -> None:
        self.attacker = attacker
        self.socket = sock
        self.shaking = isinstance(sock, ssl.SSLSocket)
        self.step = -1  # not connected yet
        self.received = b""
        self.unsent = memoryview(b"")
        self.number = 1  # of the next HTTP/2 stream
        self.interest = _IN | _OUT


class Attack:
    """All attackers. Lives inside `main`, or inside a test's `with` block, which closes it."""

    def __init__(self, order: Order) -> None:
        self.tally = Tally()
        self._address = ("127.0.0.1", order.port)
        self._flood = order.flood
        self._endless = bool(order.flood.burst or order.flood.numbered)
        self._poller = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._missing = [
            attacker for attacker in range(order.attackers) for _ in range(order.flood.connections)
        ]
        self._retry = 0.0
        self._trickle: deque[tuple[float, Connection]] = deque()
        self._buffer = memoryview(bytearray(262_144))
        self._context = _tls_context() if order.flood.http2 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections.values():
            _reset(connection.socket)
        self._connections.clear()
        self._poller.close()

    def run(self, until: int) -> None:
        """Attack until this descriptor is readable."""
        self._poller.register(until, _IN)
        while True:
            self._open_missing()
            self._send_bytes()
            for fd, events in self._poller.poll(self._timeout(), _AT_ONCE):
                if fd == until:
                    return
                connection = self._connections.get(fd)
                if connection is not None:
                    self._serve(connection, events)

    def _timeout(self) -> float:
        if self._missing:
            return _RETRY
        return max(0.0, self._trickle[0][0] - time.monotonic()) if self._trickle else 1.0

    def _open_missing(self) -> None:
        if self._missing and time.monotonic() >= self._retry:
            missing, self._missing = self._missing, []
            for attacker in missing:
                self._open(attacker)

    def _open(self, attacker: int) -> None:
        sock = socket.socket()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            if not self._flood.reads:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UNREAD_BUFFER)
            sock.bind((f"127.0.0.{FIRST_ADDRESS + attacker}", 0))
            with contextlib.suppress(BlockingIOError):
                sock.connect(self._address)
            if self._context is not None:
                sock = _wrapped(self._context, sock)
        except OSError:
            sock.close()
            self._missing.append(attacker)
            self._retry = time.monotonic() + _RETRY
            return
        self.tally.opened += 1
        connection = self._connections[sock.fileno()] = Connection(attacker, sock)
        self._poller.register(sock.fileno(), connection.interest | select.EPOLLRDHUP)

    def _serve(self, connection: Connection, events: int) -> None:
        """Do what a connection is ready for; if it is over, begin the attacker's next one."""
        try:
            if connection.step < 0 and not events & (_BROKEN & ~select.EPOLLRDHUP):
                self._begin(connection)
            elif events & _IN and connection.interest & _IN:
                self._receive(connection)
            elif events & _BROKEN:
                raise ConnectionResetError
            for _ in range(_SENDS if events & _OUT else 0):
                self._send(connection)
        except BlockingIOError:
            return
        except (OSError, _LeftError) as error:
            self._again(connection, cut=not isinstance(error, _LeftError))

    def _again(self, connection: Connection, *, cut: bool) -> None:
        self.tally.cut += cut
        del self._connections[connection.socket.fileno()]
        _reset(connection.socket)
        if cut and connection.step < 0:  # it never began: the server may be gone
            self._missing.append(connection.attacker)
            self._retry = time.monotonic() + _RETRY
        else:
            self._open(connection.attacker)

    def _begin(self, connection: Connection) -> None:
        """Shake hands where TLS is spoken, then go to the first step."""
        if connection.shaking:
            sock = connection.socket
            assert isinstance(sock, ssl.SSLSocket)
            try:
                sock.do_handshake()
            except ssl.SSLWantReadError:
                self._want(connection, _IN)
                return
            except ssl.SSLWantWriteError:
                self._want(connection, _OUT)
                return
            connection.shaking = False
        self._go_on(connection)

    def _go_on(self, connection: Connection) -> None:
        """Go to the next step, or to the flood behind the last one."""
        connection.step += 1
        connection.received = b""
        if connection.step < len(self._flood.steps):
            connection.unsent = memoryview(self._flood.steps[connection.step].send)
        elif not self._endless:
            raise _LeftError
        elif self._flood.pause:
            self._want(connection, _IN)
            self._trickle.append((time.monotonic() + self._flood.pause, connection))
            return
        else:
            connection.unsent = memoryview(self.next_burst(connection))
        self._want(connection, (_IN if self._flood.reads else 0) | _OUT)

    def next_burst(self, connection: Connection) -> bytes:
        """Return the bytes that this connection sends next."""
        if not self._flood.numbered:
            return self._flood.burst
        first = connection.number
        connection.number = last = first + 2 * _STREAMS
        numbers = (number.to_bytes(4) for number in range(first, last, 2))
        return b"".join(number.join(self._flood.numbered) for number in numbers)

    def _send(self, connection: Connection) -> None:
        if not connection.unsent:
            return
        size = connection.socket.send(connection.unsent)
        self.tally.sent += size
        connection.unsent = connection.unsent[size:]
        if connection.unsent:
            return
        if connection.step == len(self._flood.steps):
            connection.unsent = memoryview(self.next_burst(connection))
        elif self._flood.steps[connection.step].until:
            self._want(connection, _IN)
        else:
            self._go_on(connection)

    def _receive(self, connection: Connection) -> None:
        """Read the answer away; go on if it ends a step."""
        # A TLS socket must give its whole record at once.
        tls = self._context is not None
        data = connection.socket.recv(65_536) if tls else self._received(connection.socket)
        if not data or (self._flood.goodbye and self._flood.goodbye in data):
            raise ConnectionResetError
        if connection.step == len(self._flood.steps):
            return
        received = connection.received + data
        connection.received = received[-_TAIL:]
        until = self._flood.steps[connection.step].until
        if until and until in received:
            self._go_on(connection)

    def _received(self, sock: socket.socket) -> bytes:
        """Read much at once, and return the last of it: answers may be a hundred times the attack.

        The end has the goodbye, and a step's answer is short.
        """
        size = sock.recv_into(self._buffer)
        return bytes(self._buffer[max(0, size - _TAIL) : size])

    def _send_bytes(self) -> None:
        """Send one byte on each connection that is due, where a flood trickles."""
        now = time.monotonic()
        while self._trickle and self._trickle[0][0] <= now:
            _, connection = self._trickle.popleft()
            if connection.socket.fileno() < 0:
                continue
            try:
                self.tally.sent += connection.socket.send(self._flood.burst)
            except BlockingIOError:
                pass
            except OSError:
                self._again(connection, cut=True)
                continue
            self._trickle.append((now + self._flood.pause, connection))

    def _want(self, connection: Connection, interest: int) -> None:
        if connection.interest != interest:
            connection.interest = interest
            self._poller.modify(connection.socket.fileno(), interest | select.EPOLLRDHUP)


def _tls_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # strangers do not check
    context.sslsocket_class = TLSSocket  # raises BlockingIOError, as a plain socket does
    context.set_alpn_protocols([HTTP2])
    return context


def _wrapped(context: ssl.SSLContext, sock: socket.socket) -> ssl.SSLSocket:
    """Return the TLS socket of a connection; on loopback the connection exists by now."""
    sock.settimeout(10)  # the listener's queue may have been full
    select.select([], [sock], [], 10)
    sock.setblocking(False)
    return context.wrap_socket(sock, do_handshake_on_connect=False)


def _reset(sock: socket.socket) -> None:
    """Close with a reset, so that no port stays in TIME_WAIT."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def main() -> None:
    """Read the order, attack until the input ends, write the tally."""
    gc.disable()
    os.nice(10)  # the honest side comes first on this core, as if it had a core of its own
    size = int.from_bytes(sys.stdin.buffer.read(4))
    if not size:
        return
    order = msgspec.msgpack.decode(sys.stdin.buffer.read(size), type=Order)
    start = time.process_time()
    with Attack(order) as attack:
        attack.run(_INPUT)
        attack.tally.cpu_s = time.process_time() - start
        sys.stdout.buffer.write(msgspec.msgpack.encode(attack.tally))


if __name__ == "__main__":
    main()
