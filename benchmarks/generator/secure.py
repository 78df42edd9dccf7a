"""TLS for a benchmark: a certificate for the server, and sockets that trust it."""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import trustme

from repeater.front.tls import TLSSocket


@cache
def _authority() -> tuple[tempfile.TemporaryDirectory[str], ssl.SSLContext]:
    """Make the server's files, in a folder removed with this process, and the clients' context."""
    directory = tempfile.TemporaryDirectory(prefix="repeater-benchmarks-")
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(Path(directory.name) / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(Path(directory.name) / "cert.pem"))
    context = ssl.create_default_context()
    context.sslsocket_class = TLSSocket  # raises BlockingIOError, as a plain socket does
    ca.configure_trust(context)
    return directory, context


def tls_arguments() -> Sequence[str]:
    """Return the arguments that make the server speak TLS."""
    directory = Path(_authority()[0].name)
    return "--tls-cert", str(directory / "cert.pem"), "--tls-key", str(directory / "key.pem")


def secured(sock: socket.socket) -> socket.socket:
    """Return the client's end of a TLS connection, after the handshake."""
    sock.settimeout(10)
    wrapped = wrap(sock)
    wrapped.do_handshake()
    wrapped.setblocking(False)
    return wrapped


def wrap(sock: socket.socket) -> ssl.SSLSocket:
    """Return the client's end of a TLS connection, before the handshake; `sock` is connected."""
    return _authority()[1].wrap_socket(
        sock, server_hostname="127.0.0.1", do_handshake_on_connect=False
    )
