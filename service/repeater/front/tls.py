"""TLS on non-blocking sockets: the standard library's, with the manners of a plain socket.

A `TLSSocket` reads, writes and would block like any other, so every native way in works on it as
it is, direct write included. Rule: whatever was decrypted leaves with the `recv` that decrypted
it; nothing stays where `wait_readable`, which asks the kernel, can't see it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from pathlib import Path

HTTP2: Final = "h2"
_PROTOCOLS: Final = [HTTP2, "http/1.1"]
_RECORD: Final = 16_384  # the most that one TLS record holds (RFC 8446, section 5.1)


class TLSError(Exception):
    """The certificate or its key is of no use; the text is one line for whoever configured it."""


class TLSSocket(ssl.SSLSocket):
    """The server's end of a connection. Made by `Certificate.wrap`; owned as the plain one was."""

    client: tuple[str, int] | None = None
    """Whom a PROXY header named; None for the peer itself."""
    forwarded: tuple[str, int] | None = None
    """Whom the headers of the connection's only request named."""

    def getpeername(self) -> object:
        """The client's address and port; the port is 0 where it is not known."""
        return self.forwarded or self.client or super().getpeername()

    def recv(self, buflen: int = _RECORD, flags: int = 0) -> bytes:
        """What has arrived; a whole record, even where that is more than asked for.

        Raises:
            BlockingIOError: nothing yet.
        """
        try:
            return super().recv(max(buflen, _RECORD), flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
        """Encrypt and write what the kernel takes; how much of `data` that was.

        Raises:
            BlockingIOError: nothing was taken. OpenSSL keeps a record of it, so the next call
                must begin with the same bytes, as a backlog does.
        """
        if not data:
            return 0
        try:
            return super().send(data, flags)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None

    def shutdown(self, how: int) -> None:
        """Say that nothing more will come (`close_notify`), and end our side of the socket."""
        # It would also wait for the peer's, which is not there yet; or there is no session.
        with contextlib.suppress(OSError, ValueError):
            self.unwrap()
        super().shutdown(how)


class Certificate:
    """The certificate in force. Lives inside the server; connections keep the one they met."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Load it.

        Raises:
            TLSError: a file can't be read, or the two do not fit.
        """
        self._files = certificate, key
        self._context = _load_context(certificate, key)

    def reload(self) -> None:
        """Read the files again, for the connections to come.

        Raises:
            TLSError: they are of no use, and the old certificate stays.
        """
        self._context = _load_context(*self._files)

    def wrap(self, sock: socket.socket) -> TLSSocket:
        """Take over an accepted socket. The handshake is yet to come.

        Raises:
            OSError: it is broken, and closed.
        """
        wrapped = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        assert isinstance(wrapped, TLSSocket)
        return wrapped


def _load_context(certificate: Path, key: Path) -> ssl.SSLContext:
    for file in (certificate, key):
        try:
            with file.open("rb"):
                pass  # OpenSSL would not say which of the two it was
        except OSError as error:
            raise TLSError(f"{file}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = TLSSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # HTTP/2 forbids them (RFC 9113, section 9.2.1), and a write that must read could spin.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(_PROTOCOLS)
    try:
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as error:
        reason = (error.reason or "no PEM").lower().replace("_", " ")
        raise TLSError(
            f"{certificate} and {key} are no certificate with its key: {reason}"
        ) from None
    return context


async def shake_hands(sock: TLSSocket) -> str:
    """The handshake; the protocol that the peer chose. The caller sets the deadline.

    Raises:
        ssl.SSLError: it failed.
        OSError: the peer is gone.
    """
    socket.socket.getpeername(sock)  # a peer that was gone at once never got a session
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(sock)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(sock)
        else:
            return sock.selected_alpn_protocol() or _PROTOCOLS[-1]
