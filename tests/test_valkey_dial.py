"""How connections to Valkey and Redis begin: TLS, credentials, databases, and deadlines."""

from __future__ import annotations

import socket
import ssl
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from repeater.valkey.dial import Greeting, TLSFiles, answer_to, dial, tls_context
from repeater.valkey.opening import open_servers
from repeater.valkey.pipe import Lost, Refused
from repeater.valkey.servers import answer_from
from repeater.valkey.url import Address, Credentials, parse_url
from tests.certificates import Authority
from tests.deadlines import LOOP_ANSWERS
from tests.valkey_connections import Log, connected
from tests.valkeys import REDIS, Program, each_program, tls_options, valkey


async def test_tls_with_certificates_of_both_ends(authority: Authority, tmp_path: Path) -> None:
    """The server is believed by `engine_ca_file`, and believes the client's certificate."""
    ca_file = tmp_path / "ca.pem"
    authority.ca.cert_pem.write_to_path(str(ca_file))
    with valkey(REDIS, *tls_options(authority, ca_file)) as server:
        port = server.call("CONFIG", "GET", "tls-port")
        assert isinstance(port, list)
        endpoints = parse_url(f"valkeys://localhost:{int(port[1])}")
        files = TLSFiles(ca_file, authority.certificate, authority.key)
        log = Log()
        servers = open_servers([endpoints], files)
        servers.add(log)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(servers.run)
            await log.wait("up")
            assert await answer_from(servers, 0, "ECHO", "secret") == b"secret"
            nursery.cancel_scope.cancel()
        with pytest.raises(Lost):
            await _greet(endpoints.addresses[0], Greeting(tls_context(TLSFiles(ca_file))))
        with pytest.raises(Lost, match="certificate verify failed"):
            await _greet(endpoints.addresses[0], Greeting(ssl.create_default_context()))


@pytest.mark.parametrize(
    "address",
    [
        Address("a..b", 6379),
        Address("x" * 300, 6379),
        Address("\udc80", 6379),
        Address("127.0.0.1", 10**30),
        Address("127.0.0.1", -1),
        Address(path="/a\0b"),
        Address(path="/" + "a" * 200),
    ],
)
async def test_an_address_that_cannot_be_is_no_connection(address: Address) -> None:
    """Other servers name it, in a MOVED or as Sentinels: it must not end the process."""
    with pytest.raises(Lost, match="no connection"):
        await _greet(address, Greeting())


class _NoNames(trio.abc.HostnameResolver):
    """Knows no host."""

    async def getaddrinfo(self, *_: object) -> list[object]:  # type: ignore[override]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise NotImplementedError


async def test_a_name_that_nobody_knows() -> None:
    """The outage says so, without the name."""
    trio.socket.set_custom_hostname_resolver(_NoNames())
    with pytest.raises(Lost) as lost:
        await _greet(Address("engine.internal", 6379), Greeting())
    assert str(lost.value) == "no connection: Name or service not known"


async def test_a_port_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server waits for more of a command; the outage says what has not come about."""
    monkeypatch.setattr("repeater.valkey.dial.TIMEOUT", 0.1)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        address = Address("127.0.0.1", listener.socket.getsockname()[1])
        with pytest.raises(Lost, match="no TLS connection within"):
            await _greet(address, Greeting(ssl.create_default_context()))
        with pytest.raises(Lost, match="no answer within"):
            await _greet(address, Greeting())


async def test_a_certificate_for_another_name_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    """The name is checked; the outage says so without the name, since health checks are open."""
    ca_file = tmp_path / "ca.pem"
    authority.ca.cert_pem.write_to_path(str(ca_file))
    other = Authority(authority.ca, tmp_path / "other.pem", tmp_path / "other.key")
    issued = authority.ca.issue_cert("engine.internal")
    issued.private_key_pem.write_to_path(str(other.key))
    issued.cert_chain_pems[0].write_to_path(str(other.certificate))
    with valkey(REDIS, *tls_options(other, ca_file)) as server:
        port = server.call("CONFIG", "GET", "tls-port")
        assert isinstance(port, list)
        files = TLSFiles(ca_file, authority.certificate, authority.key)
        for host, why in (("localhost", "Hostname"), ("127.0.0.1", "IP address")):
            with pytest.raises(Lost) as lost:
                await _greet(Address(host, int(port[1])), Greeting(tls_context(files)))
            assert str(lost.value) == f"certificate verify failed: {why} mismatch"


def test_a_key_with_a_password_is_a_mistake(authority: Authority, tmp_path: Path) -> None:
    """Nobody is asked for it at the terminal."""
    key = load_pem_private_key(authority.key.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"not written down")
        )
    )
    with pytest.raises(ssl.SSLError):
        tls_context(TLSFiles(cert=authority.certificate, key=locked))


async def _greet(address: Address, greeting: Greeting) -> None:
    async with dial(address, greeting):
        raise AssertionError("it is a connection")


@each_program
async def test_a_user_and_a_password(program: Program) -> None:
    """The right ones are let in, and with wrong ones the outage says so without the password."""
    with valkey(program) as server:
        server.call("ACL", "SETUSER", "some", "on", ">a/b@c", "+@all", "~*", "&*")
        async with connected(server.url.replace("//", "//some:a%2Fb%40c@")) as servers:
            assert await answer_from(servers, 0, "ACL", "WHOAMI") == b"some"
        with pytest.raises(Refused) as refused:
            await _greet(
                Address(path=server.path), Greeting(credentials=Credentials("some", "wrong"))
            )
        assert refused.value.code == "WRONGPASS"
        assert "wrong" not in str(refused.value)


async def test_a_database() -> None:
    """Commands are for the database that the URL names."""
    with valkey() as server:
        async with connected(f"{server.url}/3") as servers:
            await answer_from(servers, 0, "SET", "key", "value")
        assert server.call("GET", "key") is None
        async with connected(f"{server.unix_url}?database=3") as servers:
            assert await answer_from(servers, 0, "GET", "key") == b"value"


async def test_a_paused_server_is_not_waited_for_long() -> None:
    """A server that accepts and does not answer is given up after a second."""
    with valkey() as server:
        server.pause()
        started = trio.current_time()
        with pytest.raises(Lost, match="no answer within 1 s"):
            await _greet(Address("127.0.0.1", server.port), Greeting())
        assert trio.current_time() - started < LOOP_ANSWERS


async def test_what_does_not_speak_the_protocol_is_left() -> None:
    """Another server on the port is an outage with a reason, and no crash."""

    async def speak(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, speak, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with pytest.raises(Lost, match="not an answer of a server"):
            await _greet(Address("127.0.0.1", port), Greeting())
        nursery.cancel_scope.cancel()


async def test_an_end_in_the_middle_is_told_to_whoever_waits() -> None:
    """A server that closes the connection fails what was asked."""
    with valkey() as server:
        async with dial(Address("127.0.0.1", server.port), Greeting()) as pipe:
            identity = await answer_to(pipe, "CLIENT", "ID")
            assert isinstance(identity, int)
            server.call("CLIENT", "KILL", "ID", identity)
            with pytest.raises(Lost):
                await answer_to(pipe, "PING")
