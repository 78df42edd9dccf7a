"""TLS to servers that others name: primaries that Sentinels know, and those of a cluster; faked."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import hiredis
import pytest
import trio

from repeater.valkey.dial import TLSFiles
from repeater.valkey.opening import open_servers
from repeater.valkey.slots import PARTITIONS
from repeater.valkey.url import parse_url
from tests.certificates import Authority
from tests.valkey_connections import States


class FakeServer:
    """Sentinel, single server and server of a cluster in one: `named` is at the other port."""

    def __init__(self) -> None:
        self.named = 0
        self.logins: list[list[bytes]] = []
        """What each connection was begun with."""

    async def serve(self, stream: trio.abc.Stream) -> None:
        reader = hiredis.Reader()
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():
                reader.feed(bytes(data))
                while (command := reader.gets()) is not False:
                    await stream.send_all(self.answer(command))

    def answer(self, command: list[bytes]) -> bytes:
        match command:
            case [b"HELLO", _three, *rest]:
                self.logins.append(rest)
                return b"%0\r\n"
            case [b"PING"]:
                return b"+PONG\r\n"
            case [b"ROLE"]:
                return b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"
            case [b"SENTINEL", b"MASTER", _name]:
                return b"%1\r\n$12\r\nconfig-epoch\r\n$1\r\n1\r\n"
            case [b"SENTINEL", _get, _name]:
                port = b"%d" % self.named
                return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(port), port)
            case [b"CLUSTER", _slots]:
                owner = b"*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % self.named
                return b"*1\r\n*3\r\n:0\r\n:16383\r\n" + owner
            case [b"SUBSCRIBE" | b"SSUBSCRIBE" as verb, *channels]:
                form = b">3\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n:1\r\n"
                kind = verb.lower()
                return b"".join(form % (len(kind), kind, len(one), one) for one in channels)
        return b":0\r\n"


@asynccontextmanager
async def fakes(authority: Authority) -> AsyncIterator[tuple[FakeServer, FakeServer, int]]:
    """A server that names another one, and the first one's port; both speak TLS only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate, authority.key)
    first, second = FakeServer(), FakeServer()
    async with trio.open_nursery() as nursery:
        ports = []
        for one in (first, second):
            listen = partial(trio.serve_ssl_over_tcp, host="127.0.0.1")
            (listener,) = await nursery.start(listen, one.serve, 0, context)
            ports.append(listener.transport_listener.socket.getsockname()[1])
        first.named = second.named = ports[1]
        yield first, second, ports[0]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("url", "partitions", "asked"),
    [
        ("rediss+sentinel://us:er@localhost:{}/name?sentinel_password=other", 1, "default:other"),
        ("valkeys+cluster://us:er@localhost:{}", PARTITIONS, "us:er"),
    ],
)
async def test_servers_that_others_name_are_reached_by_tls(
    url: str, partitions: int, asked: str, authority: Authority, tmp_path: Path
) -> None:
    """Their certificates are checked as well, and each is told what it is to be told."""
    ca_file = tmp_path / "ca.pem"
    authority.ca.cert_pem.write_to_path(str(ca_file))
    async with fakes(authority) as (first, second, port):
        states = States()
        servers = open_servers([parse_url(url.format(port))], TLSFiles(ca_file))
        servers.add(states)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(servers.run)
            await states.wait(up=partitions)
            nursery.cancel_scope.cancel()
        for server, credentials in ((first, asked), (second, "us:er")):
            login = [b"AUTH", *credentials.encode().split(b":"), b"SETNAME", b"repeater"]
            assert server.logins
            assert all(one == login for one in server.logins)
        untrusted = open_servers([parse_url(url.format(port))])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(untrusted.run)
            await trio.sleep(0.3)
            assert "certificate verify failed" in untrusted.outage()
            nursery.cancel_scope.cancel()
