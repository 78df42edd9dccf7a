"""Where a PostgreSQL is: hosts, names, services, and what becomes of a try that fails."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.postgres.address import connect
from repeater.postgres.errors import LostError
from tests.deadlines import PROCESS_STARTS
from tests.postgres_pipes import piping

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def url(postgresql: str) -> str:
    """libpq's URL of a real server."""
    return postgresql.replace("+psycopg", "")


@pytest.fixture
def folder(url: str) -> str:
    """Where that server's Unix socket is."""
    return url.partition("host=")[2]


async def fail(url: str, timeout: float = PROCESS_STARTS) -> str:
    """Connect, and tell why that is not possible."""
    with pytest.raises(LostError) as caught:
        await connect(url, "x", lambda _channel: None, timeout=timeout)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port where nobody is. It stays ours, so that nobody comes."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@asynccontextmanager
async def silent_server() -> AsyncIterator[trio.SocketListener]:
    """A port that takes connections and says nothing."""
    async with (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0] as listener:
        yield listener


def port_of(listener: trio.SocketListener) -> int:
    return int(listener.socket.getsockname()[1])


def failing(host: str) -> str:
    return f"postgresql://ann:secret@{host}/db?sslmode=disable"


async def test_what_cannot_be_reached_is_told() -> None:
    """In one line, and without the password."""
    with refusing_port() as port:
        assert "Connection refused" in await fail(failing(f"127.0.0.1:{port}"))
    for host in ("nobody.invalid", "a..b", f"{'a' * 64}.invalid"):
        assert (await fail(failing(host))).startswith(f"{host} is not known: ")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://[",
        "host",
        "host=/tmp\0 password=secret",
        "host=\udcff",
        "mysql://a/b",
        "postgresql://a:b@secret@c",
    ],
)
async def test_what_is_no_address_is_told(url: str) -> None:
    """Without a word of it: there may be a password in it."""
    assert (await fail(url)).startswith("the address is not one of PostgreSQL (")


async def test_ports_without_a_host_are_told() -> None:
    """In the words of libpq."""
    assert await fail("host=a,b port=1,2,3") == "could not match 3 port numbers to 2 hosts"


async def test_a_server_that_says_nothing_has_a_deadline(mock_clock: MockClock) -> None:
    """Each address has its own, and libpq's socket is closed after it. The fixture looks."""
    why: list[str] = []
    async with silent_server() as listener, trio.open_nursery() as nursery:

        async def try_it() -> None:
            why.append(await fail(failing(f"127.0.0.1:{port_of(listener)}"), 2))

        nursery.start_soon(try_it)
        async with await listener.accept():
            await wait_all_tasks_blocked()
            assert not why
            mock_clock.jump(2)
            await wait_all_tasks_blocked()
            assert why == ["the server does not answer"]


async def test_who_stops_connecting_leaves_nothing() -> None:
    """The socket is closed. The fixture looks."""
    async with silent_server() as listener, trio.open_nursery() as nursery:
        nursery.start_soon(fail, failing(f"127.0.0.1:{port_of(listener)}"))
        async with await listener.accept():
            nursery.cancel_scope.cancel()


async def test_no_descriptor_is_left_for_a_pipe(url: str) -> None:
    """libpq has its socket and the pipe gets none: that is told, and libpq's socket is closed."""
    async with piping(url):  # What is imported and opened once.
        pass
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        why = await fail(url)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Too many open files" in why


async def test_the_first_host_that_can_be_used_is_taken(folder: str, mock_clock: MockClock) -> None:
    """Behind one that nobody knows, one that refuses, and one that says nothing."""

    async def ask(hosts: str) -> None:
        async with piping(f"{hosts} user=postgres dbname=postgres sslmode=disable") as pipe:
            assert await pipe.ask(b"SELECT 1") == [(b"1",)]

    with refusing_port() as closed:
        async with silent_server() as listener, trio.open_nursery() as nursery:
            ports = f"{closed},{closed},{port_of(listener)},5432"
            hosts = f"nobody.invalid,127.0.0.1,127.0.0.1,{folder}"
            nursery.start_soon(ask, f"host={hosts} port={ports}")
            async with await listener.accept():
                mock_clock.jump(PROCESS_STARTS)


async def test_a_standby_is_not_a_primary(url: str) -> None:
    """A server of another kind than `target_session_attrs` is passed by, or is a second choice."""
    assert "not in hot standby" in await fail(f"{url}&target_session_attrs=standby")
    async with piping(f"{url}&target_session_attrs=prefer-standby") as pipe:
        assert await pipe.ask(b"SELECT pg_is_in_recovery()") == [(b"f",)]


async def test_names_and_texts_are_ours(url: str) -> None:
    """Whatever the URL says, `pg_stat_activity` shows who is connected, and texts are UTF-8."""
    async with piping(f"{url}&application_name=other&client_encoding=LATIN1") as pipe:
        assert await pipe.ask(b"SELECT current_setting('application_name'), chr(228)") == [
            (b"repeater/test", "\u00e4".encode())
        ]


@pytest.fixture
def service(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a service, which libpq finds in a file."""
    file = tmp_path / "services"
    file.write_text(f"[ours]\nhost={folder}\nuser=postgres\ndbname=postgres\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    return "ours"


async def test_a_service_is_found(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the URL, or in PGSERVICE. What the URL says of the place counts more."""
    async with piping(f"postgresql:///?service={service}") as pipe:
        assert await pipe.ask(b"SELECT 1") == [(b"1",)]
    assert "Connection refused" in await fail(f"host=127.0.0.1 port=1 service={service}")
    monkeypatch.setenv("PGSERVICE", service)
    async with piping("") as pipe:
        assert await pipe.ask(b"SELECT 1") == [(b"1",)]
    assert await fail("service=other") == 'definition of service "other" not found'


async def test_variables_of_libpq_are_heard(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PGHOST and PGPORT, if the URL names no host. A name among them is looked up by Trio.

    libpq itself would wait for the name service, and stop the loop.
    """
    for name, value in (("PGHOST", f"nobody.invalid,{folder}"), ("PGUSER", "postgres")):
        monkeypatch.setenv(name, value)
    async with piping("dbname=postgres") as pipe:
        assert await pipe.ask(b"SELECT 1") == [(b"1",)]
    monkeypatch.setenv("PGHOST", "nobody.invalid")
    assert (await fail("dbname=postgres")).startswith("nobody.invalid is not known: ")
    assert "/nowhere" in await fail("dbname=postgres host=/nowhere")
