"""One session after another: how often a database is asked that is away, and how it ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from repeater.outgoing import consumer
from repeater.outgoing.consumer import open_outgoing
from repeater.postgres.errors import LostError
from repeater.postgres.pipe import Pipe
from repeater.testing import open_test_node

URL = "postgresql://ann:hush@db/shop"


class Away:
    """In place of `connect`: says that nobody is there, or never says anything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tries: list[float] = []
        self.silent = False
        monkeypatch.setattr(consumer, "connect", self._connect)

    async def _connect(
        self, url: str, _name: str, _notified: Callable[[str], None], *, timeout: float
    ) -> Pipe:
        assert url == URL
        self.tries.append(trio.current_time())
        if self.silent:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        raise LostError("connection refused")


async def test_a_database_that_is_away_is_asked_less_and_less(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """After 0.1 s, twice as long each time up to 2 s, and a part of that by chance."""
    away = Away(monkeypatch)
    async with open_test_node() as node, open_outgoing(node, URL, largest=100):
        await trio.sleep(60)
    pauses = [after - before for before, after in zip(away.tries, away.tries[1:], strict=False)]
    longest = [min(0.1 * 2**number, 2.0) for number in range(len(pauses))]
    assert all(most / 2 <= one <= most for one, most in zip(pauses, longest, strict=True))
    assert len(set(pauses)) == len(pauses)
    assert 30 < len(pauses) < 66


async def test_an_outage_is_one_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason, without the address."""
    Away(monkeypatch)
    async with open_test_node() as node, open_outgoing(node, URL, largest=100) as taking:
        await trio.sleep(60)
        assert taking.outage() == "connection refused"
        assert taking.warnings() == ["the database of outbox cannot be used: connection refused"]
        assert node.statistics().outgoing == taking.statistics()
        assert not taking.statistics().up
    lines = [line for line in caplog.messages if "outbox" in line]
    assert len(lines) == 1
    assert "connection refused" in lines[0]
    assert "hush" not in caplog.text
    assert node.statistics().outgoing is None


@pytest.mark.parametrize("silent", [False, True])
async def test_the_end_does_not_wait_for_a_database_that_is_away(
    silent: bool, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Neither for the next try, nor for the one under way."""
    away = Away(monkeypatch)
    async with open_test_node() as node:
        async with open_outgoing(node, URL, largest=100):
            await trio.sleep(30)
            away.silent = silent
            await trio.sleep(3)
            ended = trio.current_time()
        assert trio.current_time() == ended


async def test_a_node_that_shuts_down_takes_no_more(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """From the beginning of its shutdown on, so that another node may lead."""
    away = Away(monkeypatch)
    async with open_test_node() as node, open_outgoing(node, URL, largest=100):
        await trio.sleep(3)
        await node.shut_down()
        count = len(away.tries)
        await trio.sleep(30)
        assert len(away.tries) <= count + 1
