"""A PostgreSQL that is reached by TCP, with passwords and TLS, a standby of it, and a proxy."""

from __future__ import annotations

import random
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import psycopg
import trio
import trustme

from benchmarks.peers.postgresql import PostgreSQL, binaries

ROLE: Final = "ann"
"""Who may connect by TCP."""
PASSWORD: Final = "secret"
"""The password of `ROLE`."""

_TLS_REQUEST: Final = bytes((0, 0, 0, 8, 4, 210, 22, 47))
_READY: Final = b"Z\0\0\0\5I"
_RULES: Final = "local all all trust\nlocal replication all trust\nhost all all all scram-sha-256\n"
_SETTINGS: Final = ("fsync=off", "log_min_messages=fatal", "shared_buffers=16MB")


class NetworkServer(NamedTuple):
    """A server, and its address."""

    postgresql: PostgreSQL
    address: str

    def url(self, host: str = "", **options: str) -> str:
        """libpq's connection string; `host` is another name than the address."""
        place = f"host={host} hostaddr={self.address}" if host else f"host={self.address}"
        given = {"user": ROLE, "password": PASSWORD, "dbname": "postgres"} | options
        return " ".join((place, *(f"{key}={value}" for key, value in given.items())))


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="repeater-pg-"))  # short: it holds the socket
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(server: PostgreSQL) -> Iterator[PostgreSQL]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def open_network_server(
    version: int = 18, certificate: trustme.LeafCert | None = None
) -> Iterator[NetworkServer]:
    """A server for the time of the block; with a certificate it speaks TLS, which 18 cannot.

    It has an address of its own in 127.0.0.0/8, so its port needs no luck.
    """
    found = binaries(version)
    assert found is not None
    address = ".".join(["127", *(str(random.randrange(1, 255)) for _ in range(3))])
    settings = [*_SETTINGS, f"listen_addresses={address}"]
    with _folder() as folder:
        if certificate is not None:
            settings += ["ssl=on", f"ssl_cert_file={folder}/cert", f"ssl_key_file={folder}/key"]
        server = PostgreSQL(found, folder, settings)
        (folder / "data" / "pg_hba.conf").write_text(_RULES)
        if certificate is not None:
            _give(server, "cert", certificate.cert_chain_pems[0])
            _give(server, "key", certificate.private_key_pem)
        with _running(server):
            with psycopg.connect(server.url) as owner:
                owner.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
            yield NetworkServer(server, address)


def _give(server: PostgreSQL, name: str, blob: trustme.Blob) -> None:
    """Write a file that the server may read, and nobody else."""
    file = server.folder / name
    file.touch(0o600)
    blob.write_to_path(str(file))
    if server.user is not None:
        shutil.chown(file, server.user)


@contextmanager
def open_standby(primary: PostgreSQL) -> Iterator[PostgreSQL]:
    """A standby of a server that runs, for the time of the block; on a Unix socket only."""
    with (
        _folder() as folder,
        _running(PostgreSQL(primary.binaries, folder, _SETTINGS, primary=primary)) as standby,
    ):
        yield standby


@asynccontextmanager
async def open_tls_proxy(socket: Path, certificate: trustme.LeafCert) -> AsyncIterator[int]:
    """Speak TLS before a server on a Unix socket, for the time of the block; yields the port.

    As some poolers and clouds do, it makes records of TLS as large as there may be.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)

    async def serve(client: trio.SocketStream) -> None:
        assert await client.receive_some(8) == _TLS_REQUEST
        await client.send_all(b"S")
        outer = trio.SSLStream(client, context, server_side=True)
        async with await trio.open_unix_socket(str(socket)) as inner, trio.open_nursery() as both:
            both.start_soon(_copy_answers, inner, outer)
            with suppress(trio.BrokenResourceError):  # libpq does not end TLS in order.
                async for part in outer:
                    await inner.send_all(part)
            both.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        serving = partial(trio.serve_tcp, serve, 0, host="127.0.0.1")
        listener = (await nursery.start(serving))[0]
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def _copy_answers(source: trio.SocketStream, sink: trio.SSLStream[trio.SocketStream]) -> None:
    """Give on what was said until the server is ready for the next statement, at once."""
    answer = b""
    async for part in source:
        answer += part
        if answer.endswith(_READY):
            await sink.send_all(answer)
            answer = b""
