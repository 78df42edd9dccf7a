"""Ports for programs that are told theirs when they start."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from benchmarks.ports import free_port

GIVEN_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_free_port_is_none_that_the_kernel_gives_out() -> None:
    """So nobody who asks for any port gets it before the program does."""
    if not GIVEN_OUT.exists() or (first := int(GIVEN_OUT.read_text().split()[0])) < 32_768:
        pytest.skip("the kernel gives out other ports here")
    assert max(free_port() for _ in range(50)) < first


def test_a_port_that_is_taken_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed over."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("benchmarks.ports._RANGE", range(port, port + 5))
        assert port < free_port() < port + 5
