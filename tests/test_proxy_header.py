"""The PROXY protocol's header: read like a published parser reads it, byte for byte its length."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6, ProxyResultLocal
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from repeater.protocol.http.proxy_header import ProxyHeaderError, header_end, parse_proxy_header

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
ports = st.integers(0, 65_535)
sources = st.one_of(
    st.builds(
        lambda address, port: ProxyResultIPv4(
            (address, port), (IPv4Address("10.0.0.1"), 80), protocol=socket.SOCK_STREAM
        ),
        st.ip_addresses(v=4),
        ports,
    ),
    st.builds(
        lambda address, port: ProxyResultIPv6(
            (address, port), (IPv6Address("fd00::1"), 80), protocol=socket.SOCK_STREAM
        ),
        st.ip_addresses(v=6),
        ports,
    ),
)


def read(received: bytes) -> tuple[tuple[str, int] | None, bytes]:
    """The address that the header names, and the bytes after it."""
    end = header_end(received)
    assert end is not None
    return parse_proxy_header(received[:end]), received[end:]


@given(sources, st.sampled_from([ProxyProtocolV1(), ProxyProtocolV2()]), st.binary(max_size=99))
def test_what_others_write_is_read(
    result: ProxyResultIPv4 | ProxyResultIPv6,
    version: ProxyProtocolV1 | ProxyProtocolV2,
    behind: bytes,
) -> None:
    """Both versions and families, with checksums; what is behind the header stays there."""
    address, port = result.source
    assert read(version.pack(result) + behind) == ((str(address), port), behind)


@given(sources, st.sampled_from([ProxyProtocolV1(), ProxyProtocolV2()]))
def test_an_unfinished_header_is_waited_for(
    result: ProxyResultIPv4 | ProxyResultIPv6, version: ProxyProtocolV1 | ProxyProtocolV2
) -> None:
    """No beginning of a header is refused, and none is taken for the whole."""
    header = version.pack(result)
    for size in range(len(header)):
        end = header_end(header[:size])
        assert end is None or end == len(header)


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=99).map(lambda one: SIGNATURE + one),
                 st.binary(max_size=99).map(lambda one: b"PROXY " + one + b"\r\n")))  # fmt: skip
def test_noise_is_refused_and_nothing_else_happens(received: bytes) -> None:
    """Whatever comes: a client, nobody, not yet, or the one error."""
    try:
        end = header_end(received)
        if end is not None and end <= len(received):
            client = parse_proxy_header(received[:end])
            assert client is None or 0 <= client[1] <= 65_535
    except ProxyHeaderError:
        pass


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
        ProxyProtocolV2().pack(ProxyResultLocal()),
        SIGNATURE + b"\x21\x00\x00\x00",
    ],
)
def test_a_proxy_may_speak_for_itself(header: bytes) -> None:
    """Its own health check, or it does not know: nobody is named."""
    assert read(header + b"GET") == (None, b"GET")


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n",
        b"PROXY TCP9 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY " + b"x" * 107,
        SIGNATURE + b"\x11\x11\x00\x00",
        SIGNATURE + b"\x22\x11\x00\x00",
        SIGNATURE + b"\x21\x11\x00\x0b" + b"x" * 11,
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_what_is_malformed_is_refused(header: bytes) -> None:
    """A missing word, another family's address, no port, a version 3, a length without end."""
    with pytest.raises(ProxyHeaderError):
        read(header)
