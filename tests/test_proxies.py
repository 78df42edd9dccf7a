"""Clients behind proxies: the addresses that proxies give, and the proxies that are trusted."""

from __future__ import annotations

from contextlib import AsyncExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from repeater.config import ConfigError, load_settings
from repeater.front import trusted_proxies
from repeater.front.trusted_proxies import Forwarded, TrustedProxies
from tests.certificates import Authority, connect
from tests.serving import UPGRADE, Peer, running, telling

OURS = TrustedProxies(["10.0.0.0/8", "fd00::/8", "unix"])
BY_RFC = TrustedProxies(["10.0.0.0/8"], "forwarded")
PROXY = b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 80\r\n"
LOCAL = "127.0.0.0/8"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["203.0.113.7"], "203.0.113.7"),
        (["6.6.6.6, 203.0.113.7"], "203.0.113.7"),
        (["6.6.6.6, 203.0.113.7, 10.1.2.3"], "203.0.113.7"),
        (["6.6.6.6", "203.0.113.7", "10.1.2.3"], "203.0.113.7"),
        (["10.9.9.9, 10.1.2.3"], "10.9.9.9"),
        (["nonsense, 10.1.2.3"], "10.1.2.3"),
        (["203.0.113.7:4711"], "203.0.113.7"),
        (["2001:db8::1"], "2001:db8::1"),
        (["[2001:db8::1]:4711, fd00::2"], "2001:db8::1"),
        (["::ffff:10.1.2.3"], "10.1.2.3"),
        (["unknown"], ""),
        ([], ""),
    ],
)
def test_the_nearest_stranger_is_the_client(values: list[str], expected: str) -> None:
    """From the end of the list, past our own proxies; what strangers put in front is theirs."""
    headers = [("X-Forwarded-For", value) for value in values]
    assert OURS.forwarded("10.0.0.1", headers).address == expected
    assert OURS.forwarded("unix", headers).address == expected
    assert OURS.forwarded("::ffff:10.0.0.1", headers).address == expected


@pytest.mark.parametrize("entry", ["1", "10.0.0.9", "for=10.0.0.9"])
@pytest.mark.parametrize("lines", [1, 1_000])
def test_only_the_end_of_a_long_list_is_read(
    monkeypatch: pytest.MonkeyPatch, entry: str, lines: int
) -> None:
    """Whatever a client writes in front of what its proxies write costs next to nothing."""
    read = []

    def reading(text: str) -> object:
        read.append(text)
        return ip_address(text)

    monkeypatch.setattr(trusted_proxies, "ip_address", reading)
    name, proxies = ("Forwarded", BY_RFC) if "=" in entry else ("X-Forwarded-For", OURS)
    headers = [(name, ",".join([entry] * (1_000 // lines)))] * lines
    found = proxies.forwarded("10.0.0.1", headers)
    assert found.address == ("" if entry == "1" else "10.0.0.9")
    assert len(read) < 200


def test_a_zone_is_no_part_of_an_address() -> None:
    """What follows the percent sign may be any text, and would stand in the log."""
    headers = [("X-Forwarded-For", "fe80::1%eth0\x1b[2J")]
    assert OURS.forwarded("10.0.0.1", headers).address == "fe80::1"


def test_a_stranger_is_not_believed() -> None:
    """Whatever it sends; and a header that our proxies do not set is anybody's."""
    headers = [("X-Forwarded-For", "1.1.1.1"), ("X-Forwarded-Proto", "https")]
    rfc = [("Forwarded", "for=1.1.1.1;proto=https")]
    for peer in ("203.0.113.7", "", "11.0.0.1"):
        assert OURS.forwarded(peer, headers) == Forwarded()
        assert BY_RFC.forwarded(peer, rfc) == Forwarded()
    assert OURS.forwarded("10.0.0.1", rfc) == Forwarded()
    assert BY_RFC.forwarded("10.0.0.1", headers) == Forwarded()
    assert BY_RFC.forwarded("unix", rfc) == Forwarded()
    assert not TrustedProxies(())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("for=203.0.113.7;proto=https", ("203.0.113.7", "https")),
        ('for=6.6.6.6, For="[2001:db8::1]:4711";Proto=HTTP', ("2001:db8::1", "http")),
        ("for=203.0.113.7, for=10.1.2.3; proto=https", ("203.0.113.7", "https")),
        ("for=_hidden", ("", "")),
        ("by=10.0.0.1;proto=gopher", ("", "")),
    ],
)
def test_the_header_of_the_rfc(value: str, expected: tuple[str, str]) -> None:
    """RFC 7239: quoted, with ports, with several elements."""
    found = BY_RFC.forwarded("10.0.0.1", [("forwarded", value)])
    assert (found.address, found.scheme) == expected


@given(st.lists(st.text()), st.sampled_from([OURS, BY_RFC]))
def test_noise_names_nobody_wrongly(values: list[str], proxies: TrustedProxies) -> None:
    """Whatever a header holds, the answer is an address or nothing, and never an error."""
    for name in ("x-forwarded-for", "x-forwarded-proto", "forwarded"):
        found = proxies.forwarded("10.0.0.1", [(name, value) for value in values])
        assert found.scheme in ("", "http", "https")


def test_wrong_settings_are_named() -> None:
    """An invalid network, and a header without a proxy that may send it."""
    with pytest.raises(ConfigError, match=r"trusted_proxies: .*10.0.0.1/8"):
        load_settings(trusted_proxies=["10.0.0.1/8"])
    with pytest.raises(ConfigError, match="proxy_protocol: needs trusted_proxies"):
        load_settings(proxy_protocol=True)
    load_settings(trusted_proxies=["10.0.0.0/8", "::1", "unix"], proxy_protocol=True)


async def ask(stream: Any, *headers: str) -> str:
    head = "".join(f"{one}\r\n" for one in headers)
    answer = await Peer(stream).call("GET", "/who", head=head)
    return answer.partition(b"\r\n\r\n")[2].decode()


async def test_each_request_has_its_client() -> None:
    """A proxy's connection carries requests of many; those without the header are its own."""
    async with (
        telling(trusted_proxies=[LOCAL]) as server,
        await trio.open_tcp_stream("127.0.0.1", server.port) as stream,
    ):
        first = "X-Forwarded-For: 6.6.6.6, 203.0.113.7"
        assert await ask(stream, first, "X-Forwarded-Proto: https") == "203.0.113.7 https"
        assert await ask(stream, "X-Forwarded-For: 203.0.113.8") == "203.0.113.8 http"
        assert await ask(stream) == "127.0.0.1 http"


async def test_without_trust_the_peer_is_the_client() -> None:
    """The default: headers are noise."""
    async with (
        telling() as server,
        await trio.open_tcp_stream("127.0.0.1", server.port) as stream,
    ):
        headers = "X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https"
        assert await ask(stream, *headers) == "127.0.0.1 http"


async def test_a_subscriber_s_address_is_the_client_s() -> None:
    """Natively, and on a kept-alive connection through Quart."""
    async with running(trusted_proxies=[LOCAL]) as server:
        for before in (False, True):
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                client = Peer(stream)
                if before:
                    await client.call("GET", "/health")
                head = UPGRADE.format(
                    path="/ws?channel=news", more="X-Forwarded-For: 203.0.113.7\r\n"
                )
                await stream.send_all(head.encode())
                assert b" 101 " in await client.until(b"\r\n\r\n")
                while not server.node.registry.clients:
                    await trio.lowlevel.checkpoint()
                (subscriber,) = server.node.registry.clients
                assert subscriber.transport.address() == "203.0.113.7"
            while server.node.registry.clients:
                await trio.lowlevel.checkpoint()


async def test_a_unix_socket_may_be_a_proxy_s(tmp_path: Path) -> None:
    """With `unix` among the trusted; then its header counts, too."""
    path = tmp_path / "a.sock"
    async with (
        telling(listen=[f"unix:{path}"], trusted_proxies=["unix"]),
        await trio.open_unix_socket(str(path)) as stream,
    ):
        assert await ask(stream) == "unix http"
        assert await ask(stream, "X-Forwarded-For: 203.0.113.7") == "203.0.113.7 http"


V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x07\x0a\x00\x00\x01\x12\x67\x00\x50"


@pytest.mark.parametrize("header", [PROXY, V2])
async def test_a_proxy_header_names_the_client(header: bytes) -> None:
    """Both versions, byte by byte, with the request right behind; for subscribers alike."""
    async with telling(trusted_proxies=[LOCAL], proxy_protocol=True) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            for at in range(len(header) - 1):
                await stream.send_all(header[at : at + 1])
                await trio.testing.wait_all_tasks_blocked()
            await stream.send_all(header[-1:] + b"GET /who HTTP/1.1\r\nHost: t\r\n\r\n")
            assert await Peer(stream).until(b"203.0.113.7 http")
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(
                header + UPGRADE.format(path="/ws?channel=news", more="").encode()
            )
            assert b" 101 " in await Peer(stream).until(b"\r\n\r\n")
            (subscriber,) = server.node.registry.clients
            assert subscriber.transport.address() == "203.0.113.7:4711"


@pytest.mark.parametrize("header", [PROXY, V2])
async def test_a_proxy_header_comes_before_tls(authority: Authority, header: bytes) -> None:
    """In the clear, in one write with the greeting: not a byte of the handshake is lost."""
    settings = {"trusted_proxies": [LOCAL], "proxy_protocol": True, **authority.settings}
    async with telling(**settings) as server:
        stream = await connect(server, authority, before=header)
        assert await ask(stream) == "203.0.113.7 https"
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("sent", [b"GET /who HTTP/1.1\r\nHost: t\r\n\r\n", PROXY[:9], b""])
async def test_a_trusted_proxy_must_send_its_header(sent: bytes) -> None:
    """Else anybody who gets at the proxy's side could choose: closed, and counted."""
    async with (
        telling(trusted_proxies=[LOCAL], proxy_protocol=True, head_timeout=0.2) as server,
        await trio.open_tcp_stream("127.0.0.1", server.port) as stream,
    ):
        if sent:
            await stream.send_all(sent)
        assert await Peer(stream).rest() == b""


async def test_a_stranger_must_not_send_a_proxy_header() -> None:
    """A header is not a request, so the connection closes; a plain one keeps its own address."""
    settings = {"trusted_proxies": ["10.0.0.0/8"], "proxy_protocol": True}
    async with telling(**settings) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(PROXY + b"GET /who HTTP/1.1\r\nHost: t\r\n\r\n")
            assert b"203.0.113.7" not in await Peer(stream).rest()
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            assert await ask(stream) == "127.0.0.1 http"


async def test_limits_count_clients_and_not_their_proxy() -> None:
    """One connection an address: two clients of one proxy both come in, the second of one not."""
    limits = {"connections_per_address": 1}
    arrivals = (("203.0.113.7", b" 101 "), ("203.0.113.8", b" 101 "), ("203.0.113.8", b" 429 "))
    async with (
        running(trusted_proxies=[LOCAL], limits=limits) as server,
        AsyncExitStack() as streams,
    ):
        for address, status in arrivals:
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            await streams.enter_async_context(stream)
            head = UPGRADE.format(path="/ws?channel=news", more=f"X-Forwarded-For: {address}\r\n")
            await stream.send_all(head.encode())
            assert status in await Peer(stream).until(b"\r\n\r\n")


async def test_a_stream_that_is_refused_leaves_no_address_behind() -> None:
    """Its connection is the proxy's and goes on with other clients' requests."""
    async with (
        telling(trusted_proxies=[LOCAL]) as server,
        await trio.open_tcp_stream("127.0.0.1", server.port) as stream,
    ):
        head = "X-Forwarded-For: 203.0.113.7\r\n"
        refused = await Peer(stream).call("POST", "/events", head=head)
        assert b" 405 " in refused.partition(b"\r\n")[0]
        assert await ask(stream, "X-Forwarded-For: 203.0.113.8") == "203.0.113.8 http"
