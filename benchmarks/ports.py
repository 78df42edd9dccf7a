"""Ports for programs that are told theirs when they start."""

from __future__ import annotations

import secrets
import socket
from typing import Final

_RANGE: Final = range(20_000, 32_768)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on.

    It is below those that Linux gives to whoever asks for any (32,768 and more). Of these, another
    program, or the very connection that asks whether the server is up, may have got the same one
    before the server takes it.
    """
    while True:
        port = _RANGE[secrets.randbelow(len(_RANGE))]
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
