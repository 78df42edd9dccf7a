"""TLS on non-blocking sockets: the standard library's TLS, used like a plain socket.

A `TLSSocket` reads, writes and raises `BlockingIOError` like a plain socket, so every native path
works on it without a change, direct writes included. Rule: `recv` returns all the bytes that it
decrypted. None may stay behind, because `wait_readable` asks the kernel and cannot see them.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from pathlib import Path

    from repeater.turns import GiveWay

HTTP2: Final = "h2"
_PROTOCOLS: Final = [HTTP2, "http/1.1"]
# Mozilla's "intermediate" list, 5.7 (wiki.mozilla.org/Security/Server_Side_TLS). TLS 1.3 has
# suites of its own, and OpenSSL's defaults choose the curves: Python before 3.15 can set no list.
_CIPHERS: Final = ":".join((
    "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305",
    "DHE-RSA-AES128-GCM-SHA256", "DHE-RSA-AES256-GCM-SHA384", "DHE-RSA-CHACHA20-POLY1305",
))  # fmt: skip
_RECORD: Final = 16_384  # the most that one TLS record holds (RFC 8446, section 5.1)


class TLSError(Exception):
    """The certificate or its key is unusable; the text is one line for the operator."""


class TLSSocket(ssl.SSLSocket):
    """The server's end of a connection. Made by `Certificate.wrap` for the plain one's owner."""

    client: tuple[str, int] | None = None
    """The client named by a PROXY header; None if the peer itself is the client."""
    forwarded: tuple[str, int] | None = None
    """The client named by the headers of the connection's only request."""

    def getpeername(self) -> object:
        """The client's address and port; the port is 0 if it is not known."""
        return self.forwarded or self.client or super().getpeername()

    def recv(self, buflen: int = _RECORD, flags: int = 0) -> bytes:
        """Return what has arrived: a whole record, even if that is more than `buflen`.

        Raises:
            BlockingIOError: nothing has arrived yet.
        """
        try:
            return super().recv(max(buflen, _RECORD), flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
        """Encrypt and write what the kernel takes; return how many bytes of `data` that was.

        Raises:
            BlockingIOError: nothing was taken. OpenSSL keeps a record of `data`, so the next call
                must begin with the same bytes; a client's backlog does.
            ConnectionResetError: the peer has left, though OpenSSL has no error of the kernel.
        """
        if not data:
            return 0
        try:
            return super().send(data, flags)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise ConnectionResetError(str(error)) from None

    def shutdown(self, how: int) -> None:
        """Say that nothing more will come (`close_notify`), and end our side of the socket."""
        # `unwrap` raises: the peer's own close_notify has not come yet, or the session never began.
        with contextlib.suppress(OSError, ValueError):
            self.unwrap()
        super().shutdown(how)


class Certificate:
    """The certificate in force. Lives inside the server; a reload leaves open connections alone."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Load the certificate and its key.

        Raises:
            TLSError: a file cannot be read, or the two do not match.
        """
        self._files = certificate, key
        self._context = _load_context(certificate, key)

    def reload(self) -> None:
        """Read the files again, for later connections.

        Raises:
            TLSError: they are unusable, and the old certificate stays.
        """
        self._context = _load_context(*self._files)

    def wrap(self, sock: socket.socket) -> TLSSocket:
        """Take over an accepted socket. The handshake comes later, in `shake_hands`.

        Raises:
            OSError: the connection is broken, and the socket is closed.
        """
        wrapped = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        assert isinstance(wrapped, TLSSocket)
        return wrapped


def _load_context(certificate: Path, key: Path) -> ssl.SSLContext:
    for file in (certificate, key):
        try:
            with file.open("rb"):
                pass  # OpenSSL would not say which of the two failed
        except OSError as error:
            raise TLSError(f"{file}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = TLSSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # HTTP/2 forbids both (RFC 9113, section 9.2.1). And with renegotiation a write may have to
    # wait for a read, while our writers wait for a writable socket: they could spin.
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(_PROTOCOLS)
    try:
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as error:
        reason = (error.reason or "not PEM").lower().replace("_", " ")
        raise TLSError(
            f"{certificate} and {key} are not a certificate and its key: {reason}"
        ) from None
    return context


async def shake_hands(sock: TLSSocket, give_way: GiveWay) -> str:
    """Do the handshake; return the protocol agreed on. The caller sets the deadline.

    A step of it takes a millisecond: `give_way` is awaited before each.

    Raises:
        ssl.SSLError: the handshake failed.
        OSError: the peer is gone.
    """
    socket.socket.getpeername(sock)  # raises if the peer was gone at once, before a session
    while True:
        await give_way()
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(sock)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(sock)
        else:
            return sock.selected_alpn_protocol() or _PROTOCOLS[-1]
