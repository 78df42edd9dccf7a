"""Where the server listens: several places at once, Unix sockets, inherited ones."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from repeater.config import ConfigError, load_settings
from repeater.config.endpoints import Endpoint, parse_endpoint
from repeater.front.listeners import ListenError, Listeners, open_all, open_listeners
from repeater.serving.errors import ServeError
from repeater.serving.server import open_server
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.processes import starts_processes
from tests.serving import Peer, peer, running

HAS_IPV6 = socket.has_ipv6 and Path("/proc/net/if_inet6").exists()


async def health(path: Path) -> bytes:
    """The answer of the server at a Unix socket."""
    async with await trio.open_unix_socket(str(path)) as stream:
        return await Peer(stream).call("GET", "/health")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:80", Endpoint("127.0.0.1", 80)),
        ("[::1]:8000", Endpoint("::1", 8000)),
        ("localhost:0", Endpoint("localhost", 0)),
        ("unix:/run/a b.sock", Endpoint(path="/run/a b.sock")),
    ],
)
def test_endpoints_are_read_as_they_are_written(text: str, expected: Endpoint) -> None:
    """And written as they are read."""
    assert parse_endpoint(text) == expected
    assert str(parse_endpoint(text)) == text


@pytest.mark.parametrize(
    "text", ["", "80", ":80", "a:", "a:x", "a:65536", "::1:80", "unix:", "[]:1"]
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    """With what one looks like, where the configuration is read."""
    with pytest.raises(ConfigError, match=r"listen: .*unix:/"):
        load_settings(listen=[text])


def test_development_mode_is_for_this_machine() -> None:
    """Every endpoint counts; a Unix socket is local."""
    load_settings(dev=True, listen=["unix:/run/a.sock", "[::1]:80"])
    with pytest.raises(ConfigError, match="loopback only"):
        load_settings(dev=True, listen=["127.0.0.1:80", "0.0.0.0:80"])


async def test_several_at_once(tmp_path: Path) -> None:
    """Two TCP ports and a Unix socket serve the same node: native and through Hypercorn."""
    path = tmp_path / "a.sock"
    listen = ["127.0.0.1:0", "127.0.0.1:0", f"unix:{path}"]
    async with running(listen=listen) as server:
        first, second, third = server.endpoints
        assert server.port == first.port != second.port
        assert third == Endpoint(path=str(path))
        assert b" 200 " in await health(path)
        async with await trio.open_unix_socket(str(path)) as stream:
            request = (
                "GET /ws?channel=news HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            await stream.send_all(request.encode())
            client = Peer(stream)
            assert b" 101 " in await client.until(b"\r\n\r\n")
            (subscriber,) = server.node.registry.clients
            assert subscriber.transport.address() == "unix"
            async with await trio.open_tcp_stream("127.0.0.1", second.port) as other:
                await Peer(other).call("POST", "/api/publish", b'{"channel":"news","data":[1]}')
            assert b"[1]" in await client.until(b"]")
    assert not path.exists()


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
async def test_ipv6() -> None:
    """By its address in brackets."""
    async with (
        running(listen=["[::1]:0"]) as server,
        await trio.open_tcp_stream("::1", server.port) as stream,
    ):
        assert b" 200 " in await Peer(stream).call("GET", "/health")


async def test_a_name_with_two_addresses_has_one_port() -> None:
    """`localhost` and a free port: the same for IPv4 and IPv6."""
    listeners = open_listeners("localhost", 0, 1)
    ports = {one.getsockname()[1] for one in listeners}
    for one in listeners:
        one.close()
    assert len(ports) == 1


async def test_a_unix_socket_has_its_mode(tmp_path: Path) -> None:
    """0660 unless told otherwise."""
    for more, mode in (({}, 0o660), ({"unix_mode": "0600"}, 0o600)):
        path = tmp_path / f"{mode}.sock"
        async with running(listen=[f"unix:{path}"], **more) as server:
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert server.port == 0


async def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    """Nobody answers at it: a crash has left it."""
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with running(listen=[f"unix:{path}"]):
        assert b" 200 " in await health(path)


async def test_a_unix_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    """One line, and the other server serves on; the same for a file that is not a socket."""
    path = tmp_path / "a.sock"
    async with running(listen=[f"unix:{path}"]):
        with pytest.raises(ServeError, match=r"cannot listen on unix:.*in use"):
            async with open_server(load_settings(dev=True, listen=[f"unix:{path}"])):
                pass
        assert b" 200 " in await health(path)
    path.write_text("precious")
    with pytest.raises(ListenError, match="in use"):
        open_all(load_settings(dev=True, listen=["127.0.0.1:0", f"unix:{path}"]), Listeners())
    assert path.read_text() == "precious"


async def test_a_path_taken_over_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """The next server's socket survives the end of this one."""
    path = tmp_path / "a.sock"
    async with running(listen=[f"unix:{path}"]):
        path.unlink()
        async with running(listen=[f"unix:{path}"]):
            pass
        path.write_text("another's")
    assert path.exists()


async def test_no_delay_is_for_tcp() -> None:
    """An accepted TCP connection sends small frames at once."""
    async with running() as server, peer(server, "/ws?channel=news"):
        (sock,) = server.acceptor._open.sockets
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def started(*sockets: socket.socket, arguments: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A server with these sockets from descriptor 3 on, as systemd starts it."""
    numbers = [one.fileno() for one in sockets]
    # High first, so that no descriptor is overwritten before it was moved.
    moves = [f"exec {90 + at}<&{number}" for at, number in enumerate(numbers)]
    moves += [f"exec {3 + at}<&{90 + at} {90 + at}<&-" for at, _ in enumerate(numbers)]
    script = "; ".join([*moves, f'LISTEN_FDS={len(numbers)} LISTEN_PID=$$ exec "$@"'])
    command = [sys.executable, "-m", "repeater", "serve", "--dev", "--no-comments", *arguments]
    return subprocess.Popen(
        ["bash", "-c", script, "bash", *command], stderr=subprocess.PIPE, text=True,
        pass_fds=numbers,
    )  # fmt: skip


@starts_processes
async def test_inherited_sockets_are_served(tmp_path: Path) -> None:
    """Those of systemd's activation, TCP and Unix, instead of host and port; they stay open."""
    path = tmp_path / "a.sock"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        with started(tcp, unix) as process:
            try:
                assert process.stderr is not None
                line = await trio.to_thread.run_sync(process.stderr.readline)
                port = tcp.getsockname()[1]
                assert f"127.0.0.1:{port} and unix:{path}" in line
                assert b" 200 " in await health(path)
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    assert b" 200 " in await Peer(stream).call("GET", "/health")
            finally:
                process.send_signal(signal.SIGTERM)
            assert await trio.to_thread.run_sync(process.wait) == 0
        assert path.exists()


@starts_processes
def test_an_inherited_socket_of_another_kind_is_refused() -> None:
    """One line: a datagram socket, and in development mode one open to other machines."""
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, started(datagrams) as process:
        _, said = process.communicate(timeout=PROCESS_STARTS)
        assert said == "Error: cannot take over descriptor 3: it is not a listening stream socket\n"
    with socket.create_server(("0.0.0.0", 0)) as public, started(public) as process:
        _, said = process.communicate(timeout=PROCESS_STARTS)
        assert said.startswith("Error: cannot take over descriptor 3: development mode")


def test_another_process_s_sockets_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes inherit the variables, which are not meant for them."""
    from repeater.config import inherited_descriptors

    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    assert not inherited_descriptors()
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    assert list(inherited_descriptors()) == [3]
    monkeypatch.setenv("LISTEN_FDS", "x")
    assert not inherited_descriptors()


@starts_processes
def test_the_command_listens_on_a_unix_socket(tmp_path: Path) -> None:
    """`--unix` and `--listen` together; the first line says where, and the file goes at the end."""
    path = tmp_path / "a.sock"
    command = [
        sys.executable,
        "-m",
        "repeater",
        "serve",
        "--dev",
        "--no-comments",
        "--unix",
        str(path),
    ]
    with subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert f"and unix:{path}" in process.stderr.readline()
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
            client.connect(str(path))
        process.terminate()
        assert process.wait(LOOP_ANSWERS) == 0
    assert not path.exists()
