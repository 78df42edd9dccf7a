"""Peers that came together do not end together: their deadlines have a random part."""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater import deadlines
from repeater.deadlines import lift, within
from repeater.front.accept import _FIRST_PAUSE, _LONGEST_PAUSE, _pause_after
from repeater.front.writer import RATE, Writer
from repeater.serving.server import Server
from tests.certificates import Authority
from tests.serving import UPGRADE, frame, peer, running

SPREAD = deadlines.SPREAD
NEVER = 3_600


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, each deadline with a random part has come when it is made."""

    def begin() -> None:
        monkeypatch.setattr(deadlines, "SPREAD", 1.0)
        monkeypatch.setattr(deadlines, "random", lambda: 1.0)

    return begin


async def test_a_random_part_never_makes_a_deadline_later(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deadlines made in one moment come in the last fifth of their time, and apart."""
    monkeypatch.setattr(deadlines, "SPREAD", SPREAD)
    now = trio.current_time()
    made = {within(10) - now for _ in range(1_000)}
    assert min(made) >= 8 - 1e-6
    assert max(made) <= 10
    assert len(made) > 900


async def test_a_deadline_is_lifted_once() -> None:
    """A scope without one is left as it is."""
    scope = trio.CancelScope(deadline=5)
    for _ in range(2):
        lift(scope)
        assert scope.deadline == math.inf


def test_heads_that_come_slowly_are_read_apart() -> None:
    """A head's pause is once to twice the time that it has taken, within bounds."""
    pauses = {_pause_after(0.2) for _ in range(1_000)}
    assert min(pauses) >= 0.2
    assert max(pauses) <= 0.4
    assert len(pauses) > 900
    assert _FIRST_PAUSE <= _pause_after(0) <= 2 * _FIRST_PAUSE
    assert _pause_after(100) == _LONGEST_PAUSE


BODY = b"POST %s HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\n"
CALL = BODY % b"/api/info" + b"{}"
PAGE = b"GET /nothing HTTP/1.1\r\nHost: t\r\n\r\n"
CLOSE = b"Connection: close\r\n\r\n"
WEBSOCKET = UPGRADE.format(path="/ws?channel=news", more="").encode()
CENTRIFUGO = UPGRADE.format(path="/connection/websocket", more="").encode()


@pytest.mark.parametrize(
    ("before", "sent"),
    [
        *((b"", b"G"), (b"", BODY % b"/connection/sse")),
        *((b"G", PAGE[1:]), (PAGE, b"G"), (b"G", PAGE[1:-2] + CLOSE)),
        *((b"P", BODY[1:] % b"/emulation"), (PAGE, BODY % b"/api/stream")),
        *((CALL[:12], CALL[12:-1]), (CALL[:12], CALL[12:])),
        *((CALL, CALL[:12]), (CALL[:12], CALL[12:-4] + CLOSE + b"{}")),
        (b"P", BODY[1:] % b"/api/stream"),
        *((b"G", CENTRIFUGO[1:]), (WEBSOCKET, frame(b"\x03\xe8", 8))),
    ],
)
async def test_every_wait_for_a_peer_has_a_random_part(
    monkeypatch: pytest.MonkeyPatch, early: Callable[[], None], before: bytes, sent: bytes
) -> None:
    """A head, the rest of one, a body, the time between requests, `connect`, and goodbyes."""
    monkeypatch.setattr("repeater.front.handed_connection._LINGER", NEVER)
    times = {"head_timeout": NEVER, "stale_timeout": NEVER, "close_timeout": NEVER}
    if not before:
        early()
    async with running(**times) as server, peer(server) as client:
        if before:
            await client.stream.send_all(before)
            if before.endswith(b"\r\n\r\n"):
                await client.until(b"\r\n\r\n")
            await wait_all_tasks_blocked(0.05)
            early()
        await client.stream.send_all(sent)
        await ended(server)


async def test_a_handshake_has_a_random_part(
    early: Callable[[], None], authority: Authority
) -> None:
    """Who begins TLS and stops is closed at the head's deadline."""
    early()
    async with (
        running(head_timeout=NEVER, **authority.settings) as server,
        await trio.open_tcp_stream("127.0.0.1", server.port) as stream,
    ):
        await stream.send_all(b"\x16\x03\x01")
        await ended(server)


async def ended(server: Server) -> None:
    """Wait until a connection came, and ended."""
    while not (counted := server.acceptor.statistics()).accepted or counted.open:  # noqa: ASYNC110
        await trio.sleep(0.01)


async def test_a_writer_has_a_random_part(early: Callable[[], None]) -> None:
    """The rate that a peer must keep has none."""
    early()
    ended: list[float] = []

    async def stall() -> None:
        ended.append(trio.current_time())

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(b"x" * 65_536)
        writer = Writer(ours, NEVER, stall)
        with trio.fail_after(5):
            await writer.write(b"x" * (RATE // 1_000))
    assert ended


async def test_a_head_that_goes_on_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand heads that go on in one moment share the readers' time, as all readers do."""
    async with running(head_timeout=NEVER) as server, peer(server) as client:
        await client.stream.send_all(b"G")
        await wait_all_tasks_blocked(0.05)
        turns: list[float] = []

        async def give_way() -> None:
            turns.append(trio.current_time())

        monkeypatch.setattr(server.node.turns, "give_way", give_way)
        await client.stream.send_all(b"E")
        while len(turns) < 2:  # as it is woken, and after its pause  # noqa: ASYNC110
            await trio.sleep(0.01)
