"""Certificates by trustme, and a client that believes them."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

import trio
import trustme

from repeater.serving.server import Server

Stream = trio.SSLStream[trio.SocketStream]


class Authority(NamedTuple):
    """A certificate authority, and the files of a certificate that it has issued."""

    ca: trustme.CA
    certificate: Path
    key: Path

    def issue(self) -> None:
        """Write a new certificate into the files."""
        issued = self.ca.issue_cert("localhost", "127.0.0.1")
        issued.private_key_pem.write_to_path(str(self.key))
        self.certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))

    def client(self, *protocols: str) -> ssl.SSLContext:
        """What a client needs to believe it."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    @property
    def settings(self) -> dict[str, object]:
        return {"tls_cert": self.certificate, "tls_key": self.key}


async def connect(
    server: Server, authority: Authority, *protocols: str, before: bytes = b""
) -> Stream:
    """A client's end, the handshake done; `before` goes before it, in the clear."""
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    if before:
        await stream.send_all(before)
    client = trio.SSLStream(
        stream, authority.client(*protocols), server_hostname="localhost", https_compatible=True
    )
    await client.do_handshake()
    return client
