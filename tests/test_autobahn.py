"""The Autobahn cases, run by kosoku: is our WebSocket one by the letter of RFC 6455 and RFC 7692?

Most cases want their messages back, so they run against an echo over the native transport: the
server's own read loop, reader and outbox, with a conversation that repeats what it hears. The
endpoint itself is held to those cases that need no echo.
"""

from __future__ import annotations

import pytest

from repeater.config import load_settings
from repeater.serving.server import open_server
from tests.autobahn import echo_server, failures, run_cases
from tests.processes import starts_processes

pytestmark = [pytest.mark.autobahn, starts_processes]

# 1 framing, 2 pings and pongs, 3 reserved bits, 4 opcodes, 5 fragments, 6 UTF-8, 7 closing,
# 10 automatic fragmentation. Left out:
#   9  is a benchmark with messages of up to 16 MiB: past our limit, which is 64 KiB.
CASES = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*")

# permessage-deflate: 12 by kinds of data, 13 by what the client offers; each has 18 cases, each
# with 1,000 messages of one size, the last eight in fragments. Here three of these groups, up to
# 64 KiB; `just autobahn` runs all.
SIZES = (*range(1, 10), *range(11, 15))
DEFLATE = [f"{group}.{size}" for group in ("12.1", "13.1", "13.2") for size in SIZES]

# These demand a smaller window of the server, which has one window for all.
DECLINED = ("13.3.1", "13.5.1")
# This one offers the same, and then less.
SECOND_OFFER = "13.7.1"

CONCURRENCY = 16


async def test_the_transport_passes_every_case() -> None:
    """All of 1 to 7 and 10, 247 cases, against an echo."""
    async with echo_server() as url:
        outcomes = await run_cases(url, CASES, CONCURRENCY)
        assert len(outcomes) == 247
        assert not await failures(url, outcomes)


async def test_compression_passes_every_case() -> None:
    """A thousand messages of each size, each compressed by itself, in both directions."""
    async with echo_server() as url:
        outcomes = await run_cases(url, [*DEFLATE, SECOND_OFFER], 4)
        assert len(outcomes) == 40
        assert not any(outcome.declined for outcome in outcomes)
        assert not await failures(url, outcomes)


async def test_a_smaller_window_is_declined() -> None:
    """The suite counts such a case neither as passed nor as failed."""
    async with echo_server() as url:
        outcomes = await run_cases(url, DECLINED, 2)
        assert [outcome.declined for outcome in outcomes] == [True, True]


async def test_the_endpoint_passes_what_needs_no_echo() -> None:
    """The Centrifugo endpoint, which answers a stray message with 3501, passes the other 140."""
    async with open_server(load_settings(dev=True, port=0)) as server:
        url = f"ws://127.0.0.1:{server.port}/connection/websocket"
        outcomes = await run_cases(url, CASES, CONCURRENCY)
        asked = [outcome for outcome in outcomes if not outcome.echo]
        assert len(asked) == 140
        assert not await failures(url, asked)
