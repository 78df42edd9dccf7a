"""PostgreSQL over TCP: passwords, certificates, servers that stop, and a standby."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from benchmarks.peers.postgresql import binaries
from repeater.postgres.address import connect
from repeater.postgres.errors import LostError
from repeater.postgres.pipe import Pipe
from tests.deadlines import PROCESS_STARTS
from tests.postgres_network import (
    PASSWORD,
    NetworkServer,
    open_network_server,
    open_standby,
    open_tls_proxy,
)
from tests.postgres_pipes import failure_of, piping

pytestmark = [
    pytest.mark.slow,  # once is enough: nothing in it depends on the version of Python
    pytest.mark.timeout(2 * PROCESS_STARTS),
]

_KEEPALIVE: Final = (
    *(socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT),
    socket.TCP_USER_TIMEOUT,
)
_IN_RECOVERY: Final = b"SELECT pg_is_in_recovery()"


@pytest.fixture(scope="module")
def server() -> Iterator[NetworkServer]:
    """One server for this module."""
    with open_network_server() as server:
        yield server


@pytest.fixture
def authority_file(certificate_authority: trustme.CA, tmp_path: Path) -> str:
    """The certificate of the authority in a file, as libpq wants it."""
    file = str(tmp_path / "authority.pem")
    certificate_authority.cert_pem.write_to_path(file)
    return file


async def fail(url: str, timeout: float = PROCESS_STARTS) -> str:
    """Connect, and tell why that is not possible."""
    with pytest.raises(LostError) as caught:
        await connect(url, "x", lambda _channel: None, timeout=timeout)
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


async def test_a_password_is_checked(server: NetworkServer) -> None:
    """A wrong one and none are told apart, and neither is shown."""
    async with piping(server.url()) as pipe:
        assert await pipe.ask(b"SELECT current_user") == [(b"ann",)]
    assert 'password authentication failed for user "ann"' in await fail(
        server.url(password=f"not-{PASSWORD}")
    )
    assert "no password supplied" in await fail(server.url(password="''"))


@pytest.mark.skipif(binaries(15) is None, reason="PostgreSQL 15 is not installed; 18 has no TLS")
async def test_a_certificate_is_checked(
    certificate_authority: trustme.CA, authority_file: str, tmp_path: Path
) -> None:
    """With `sslmode=verify-full`: its name, and who has issued it."""
    checked = {"sslmode": "verify-full", "sslrootcert": authority_file}
    with open_network_server(15, certificate_authority.issue_cert("db.test")) as server:
        async with piping(server.url("db.test", **checked)) as pipe:
            own = b"SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            assert await pipe.ask(own) == [(b"t",)]
        assert "does not match host name" in await fail(server.url("other.test", **checked))
        other = str(tmp_path / "other.pem")
        trustme.CA().cert_pem.write_to_path(other)
        checked["sslrootcert"] = other
        assert "certificate verify failed" in await fail(server.url("db.test", **checked))


async def test_all_of_a_record_of_tls_is_read(
    server: NetworkServer, certificate_authority: trustme.CA, authority_file: str
) -> None:
    """A record may be larger than libpq's room; what is decrypted makes no socket readable.

    libpq 15.18 (with `PSYCOPG_IMPL=python` on Debian) leaves some bytes of this answer there.
    """
    certificate = certificate_authority.issue_cert("127.0.0.1")
    socket = server.postgresql.folder / ".s.PGSQL.5432"
    async with open_tls_proxy(socket, certificate) as port:
        checked = f"sslmode=verify-full sslrootcert={authority_file}"
        where = f"host=127.0.0.1 port={port} user=postgres dbname=postgres {checked}"
        async with piping(where) as pipe:
            rows = await pipe.ask(b"SELECT repeat('x', 250) FROM generate_series(1, 125)")
            assert rows == [(b"x" * 250,)] * 125


async def test_a_server_that_vanishes_is_noticed(server: NetworkServer) -> None:
    """By the kernel: it asks a silent peer after 5 s, and waits 5 s until one takes data."""
    async with piping(server.url()) as pipe:
        with socket.socket(fileno=os.dup(pipe._socket)) as own:
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert [own.getsockopt(socket.IPPROTO_TCP, option) for option in _KEEPALIVE] == [
                *(5, 2, 2, 5_000)
            ]


@contextmanager
def stopped(server: NetworkServer) -> Iterator[None]:
    """All its processes stand still for the time of the block; the kernel answers for them."""
    pids = server.postgresql.pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


async def test_a_server_that_stands_still(server: NetworkServer, mock_clock: MockClock) -> None:
    """Who asks has a deadline of its own, and who connects has one, too; later all goes on."""
    ends: list[str] = []

    async def try_to_connect() -> None:
        ends.append(await fail(server.url(), timeout=2))

    async def ask(pipe: Pipe) -> None:
        with trio.move_on_after(1):
            await pipe.ask(b"SELECT 2")
        ends.append("asked for 1 s")

    async with piping(server.url()) as pipe:
        await pipe.ask(b"SELECT 1")
        with stopped(server):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(try_to_connect)
                nursery.start_soon(ask, pipe)
                for _ in range(2):
                    await wait_all_tasks_blocked()
                    mock_clock.jump(1)
        assert ends == ["asked for 1 s", "the server does not answer"]
        assert await pipe.ask(b"SELECT 3") == [(b"3",)]


@pytest.mark.parametrize(
    ("crash", "why"),
    [
        (False, "terminating connection due to immediate shutdown command (57P01)"),
        (True, "terminating connection because of crash of another server process (57P02)"),
    ],
)
async def test_a_server_that_stops_at_once_says_so(
    server: NetworkServer, crash: bool, why: str
) -> None:
    """By a warning and not as a failure, when it is told to, or when a process of it has died."""
    failures: list[BaseException] = []
    database = server.postgresql
    async with piping(server.url()) as pipe, piping(server.url()) as other:
        pid = int((await other.ask(b"SELECT pg_backend_pid()"))[0][0] or b"")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(failure_of, pipe, b"SELECT pg_sleep(3600)", failures)
            await wait_all_tasks_blocked()
            if crash:
                os.kill(pid, signal.SIGKILL)
            else:
                os.kill(database.pids()[0], signal.SIGQUIT)
    database.stop()
    database.start()
    assert [(type(one), str(one)) for one in failures] == [(LostError, why)]


async def test_the_primary_is_found_after_a_failover() -> None:
    """`read-write` passes a standby by, as long as it is one; `prefer-standby` looks for it."""
    with open_network_server() as server, open_standby(server.postgresql) as standby:
        primary = server.postgresql
        anybody = "user=postgres dbname=postgres host="
        writable = f"{anybody}{standby.folder},{primary.folder} target_session_attrs=read-write"
        async with piping(writable) as pipe:
            assert await pipe.ask(_IN_RECOVERY) == [(b"f",)]
        readable = f"{anybody}{primary.folder},{standby.folder} target_session_attrs=prefer-standby"
        async with piping(readable) as pipe:
            assert await pipe.ask(_IN_RECOVERY) == [(b"t",)]
        primary.kill()
        assert "Connection refused" in await fail(writable)
        with psycopg.connect(standby.url) as promoting:
            promoting.execute("SELECT pg_promote()")
        async with piping(writable) as pipe:
            assert await pipe.ask(_IN_RECOVERY) == [(b"f",)]
