"""The steps of a connection before its first request: a PROXY header, then TLS.

Afterwards the socket's `getpeername` returns the client's address, even if a proxy is in between;
so the code behind the `Preamble` need not know of proxies or of TLS.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Final

import trio

from repeater.causes import Cause, Why
from repeater.front.tls import TLSSocket, shake_hands
from repeater.front.trusted_proxies import UNIX, TrustedProxies
from repeater.protocol.http.answer import Answer, write_answer
from repeater.protocol.http.proxy_header import ProxyHeaderError, header_end, parse_proxy_header

if TYPE_CHECKING:
    from repeater.front.tls import Certificate
    from repeater.front.trusted_proxies import Headers
    from repeater.turns import GiveWay

_PEEK: Final = 4_096
_RECEIVE: Final = 65_536
_PLAIN_TO_TLS: Final = Answer(400, b"This port speaks HTTPS only.\n", "text/plain")


_PLAIN: Final = Why(
    Cause.REQUEST, "plain HTTP came to a port with TLS", "connect by https:// or wss://"
)
_MEND_HEADER: Final = (
    "have the proxy send one (nginx: proxy_protocol on), or set proxy_protocol = false"
)


class PreambleError(Exception):
    """A connection failed in one of the steps; the client may have been told why.

    `why` is for the log; None if the peer has only hung up.
    """

    def __init__(self, text: str, why: Why | None = None) -> None:
        super().__init__(text)
        self.why = why


class ProxiedSocket(socket.socket):
    """A plain connection from a proxy or a Unix socket, with its client's address."""

    __slots__ = ("client", "forwarded")

    client: tuple[str, int]
    forwarded: tuple[str, int] | None

    def getpeername(self) -> tuple[str, int]:
        """The client's address and port; the port is 0 if it is not known."""
        return self.forwarded or self.client


class Preamble:
    """Lives inside the `Acceptor`. The owner of the certificate reloads it, not the preamble."""

    def __init__(
        self,
        certificate: Certificate | None = None,
        proxies: TrustedProxies | None = None,
        *,
        proxy_protocol: bool = False,
    ) -> None:
        self.certificate = certificate
        self.proxies = proxies or TrustedProxies(())
        self.has_proxies = bool(self.proxies)
        """Whether any proxy is trusted. Each connection asks."""
        self._proxy_protocol = proxy_protocol
        self.absent = certificate is None and not proxy_protocol
        """Whether every connection is open from its first byte."""

    def take(self, sock: socket.socket) -> socket.socket:
        """Take over an accepted socket; return the one to use, non-blocking and with `TCP_NODELAY`.

        Unix sockets get no TLS: only a proxy on this machine can be at their other end.

        Raises:
            OSError: the connection is broken already.
        """
        sock.setblocking(False)
        # The plain number: the attribute of `socket.socket` itself makes an enum of it each time.
        if super(socket.socket, sock).family == socket.AF_UNIX:
            return _proxied(sock, (UNIX, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.certificate is not None:
            return self.certificate.wrap(sock)
        if self.has_proxies:
            address, port, *_ = sock.getpeername()
            if self.proxies.trusts(address):
                return _proxied(sock, (address, port))
        return sock

    def client_of(self, accepted: object) -> str:
        """The client's address in what `accept` returned; empty if it is that of a proxy.

        A Unix socket's other end is a proxy, too.
        """
        if not isinstance(accepted, tuple):
            return ""
        address = str(accepted[0])
        return "" if self.has_proxies and self.proxies.trusts(address) else address

    def named_client(self, sock: socket.socket) -> str:
        """The address that a PROXY header has named; empty without one."""
        named = sock.client if isinstance(sock, ProxiedSocket | TLSSocket) else None
        if named is None or named[0] == UNIX or self.proxies.trusts(named[0]):
            return ""
        return named[0]

    def is_open(self, sock: socket.socket) -> bool:
        """Whether this connection needs neither a PROXY header nor TLS."""
        return not isinstance(sock, ssl.SSLSocket) and not self._expects_header(sock)

    def _expects_header(self, sock: socket.socket) -> bool:
        """Whether a header must come: always from a trusted address, never from another.

        The bytes received do not decide it, because their sender must not choose its own address.
        """
        return self._proxy_protocol and self.proxies.trusts(_peer(sock))

    async def enter(self, sock: socket.socket, give_way: GiveWay) -> str:
        """Read the header, do the handshake; return the protocol chosen, empty without TLS.

        The caller sets the deadline. `give_way` lets others run between two steps of the handshake.

        Raises:
            PreambleError: the header or the handshake failed.
            OSError: the peer is gone.
        """
        if self._expects_header(sock):
            await _read_proxy_header(sock)
        if not isinstance(sock, TLSSocket):
            return ""
        try:
            return await shake_hands(sock, give_way)
        except ssl.SSLError as error:
            why = Why(Cause.REQUEST, f"the TLS handshake failed: {error.reason}")
            if error.reason == "HTTP_REQUEST":
                _answer_plainly(sock)
                why = _PLAIN
            raise PreambleError(why.text, why) from None

    def forwarded_client(self, sock: socket.socket, headers: Headers) -> str:
        """The client's address in a request's headers, if its peer is trusted; else empty."""
        if not self.has_proxies:
            return ""
        return self.proxies.forwarded(_peer(sock), headers).address

    def name_client(self, sock: socket.socket, address: str) -> None:
        """Make the socket's `getpeername` return `address` from here on.

        For a connection that serves one request; others look at the headers of each request.
        """
        if isinstance(sock, ProxiedSocket | TLSSocket):
            sock.forwarded = (address, 0)


def _proxied(sock: socket.socket, client: tuple[str, int]) -> ProxiedSocket:
    proxied = ProxiedSocket(sock.family, sock.type, sock.proto, sock.detach())
    proxied.setblocking(False)
    proxied.client = client
    proxied.forwarded = None
    return proxied


def _peer(sock: socket.socket) -> str:
    name = sock.getpeername()
    return str(name[0])


async def _read_proxy_header(sock: socket.socket) -> None:
    """Read exactly the header from the socket, and note the client that it names.

    The header is plain, even before TLS. Bytes that were peeked at without an end among them are
    read at once: if they stayed, the wait for more bytes would return at once, again and again.
    """
    header = b""
    while True:
        try:
            peeked = socket.socket.recv(sock, _PEEK, socket.MSG_PEEK)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        if not peeked:
            raise PreambleError("hung up before its PROXY header")
        try:
            end = header_end(header + peeked)
            missing = len(peeked) if end is None else end - len(header)
            header += socket.socket.recv(sock, missing)
            if end is not None and len(header) >= end:
                client = parse_proxy_header(header)
                break
        except ProxyHeaderError as error:
            why = Why(Cause.REQUEST, f"PROXY header: {error}", _MEND_HEADER)
            raise PreambleError(why.text, why) from None
    if client is not None and isinstance(sock, ProxiedSocket | TLSSocket):
        sock.client = client


def _answer_plainly(sock: socket.socket) -> None:
    """Tell a client that sent plain HTTP to a TLS port about its mistake."""
    try:
        socket.socket.recv(sock, _RECEIVE)  # unread bytes would turn the close into a reset
        socket.socket.send(sock, write_answer(_PLAIN_TO_TLS, keep_alive=False))
    except OSError:
        return  # The client is gone.
