"""Whose connection it is, as far as a socket knows."""

from __future__ import annotations

import socket

from repeater.clients.addresses import address_key
from repeater.front.request import client_address


def test_a_tcp_peer_has_its_address() -> None:
    """Without the port, which says nothing."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        accepted, _ = listener.accept()
        with accepted:
            assert client_address(accepted) == "127.0.0.1"


def test_a_unix_peer_and_one_that_is_gone_have_none() -> None:
    """They count as one address."""
    one, other = socket.socketpair()
    with one, other:
        assert client_address(one) == ""
    assert client_address(one) == ""
    assert address_key("") == "local"
