"""What a durable broker keeps in its file, what leaves the file again, and on which clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from repeater.brokers.receipts import settled
from repeater.brokers.sqlite import committer, journal
from repeater.brokers.sqlite.broker import SQLiteBroker
from repeater.brokers.sqlite.clock import LifetimeClock
from repeater.brokers.sqlite.files import log_size
from repeater.brokers.sqlite.journal import Journal
from repeater.brokers.sqlite.records import Changes
from repeater.options import ChannelOptions
from repeater.publication import Publication
from repeater.testing.broker_bench import LASTING
from tests.durable import opened

pytestmark = pytest.mark.timeout(60)

MANY = msgspec.structs.replace(LASTING, history_size=100_000)


async def publish(
    broker: SQLiteBroker, count: int, options: ChannelOptions = MANY, size: int = 1, **more: Any
) -> None:
    for first in range(0, count, 1_000):
        answers = [
            broker.submit(Publication("c", b'"%s"' % (b"x" * size)), options, **more)
            for _ in range(min(1_000, count - first))
        ]
        for one in answers:
            await settled(one)


def held(broker: SQLiteBroker) -> tuple[int, int]:
    """How many publications of the channel are kept, and its top."""
    found, top = broker.history("c", MANY)
    return len(found), top.offset


async def stored(broker: SQLiteBroker, table: str) -> int:
    def count(journal: Journal) -> int:
        with journal.transaction() as connection:
            return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    return await broker.with_journal(count)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """House-keeping ten times a second."""
    monkeypatch.setattr(committer, "_HOUSE_KEEPING", 0.1)


async def test_a_removal_that_was_answered_lasts(tmp_path: Path) -> None:
    """Its rows go in the very commit that answers it; what came behind it stays."""
    async with opened(tmp_path) as (broker, _):
        await publish(broker, 5)
        answers: list[Any] = [broker.submit(Publication("c", b"1"), MANY)]
        answers.append(broker.remove_history("c"))
        answers.append(broker.submit(Publication("c", b"2"), MANY))
        for one in answers:
            await settled(one)
        assert await stored(broker, "publications") == 1
        assert held(broker) == (1, 7)
        await broker.remove_history("c").wait()
        assert await stored(broker, "publications") == 0
    async with opened(tmp_path) as (broker, _):
        assert held(broker) == (0, 7)
        await publish(broker, 1)
        assert held(broker) == (1, 8)


async def test_what_is_pushed_out_leaves_the_file(tmp_path: Path, often: None) -> None:
    """However many come at once, the rows of the file follow the history's size."""
    async with opened(tmp_path) as (broker, _):
        await publish(broker, 20_000, LASTING)
        await trio.sleep(0.5)
        assert await stored(broker, "publications") == LASTING.history_size
    async with opened(tmp_path) as (broker, _):
        assert held(broker) == (LASTING.history_size, 20_000)


async def test_forgotten_results_leave_the_file(tmp_path: Path, often: None) -> None:
    """By their age, and by the bound; a key that is used again is kept again."""
    async with opened(tmp_path, idempotency_ttl=0.4) as (broker, _):
        await publish(broker, 1, idempotency_key="a")
        await publish(broker, 1, idempotency_key="b")
        assert await stored(broker, "results") == 2
        await trio.sleep(1)
        assert await stored(broker, "results") == 0
        await publish(broker, 1, idempotency_key="a")
        assert held(broker)[1] == 3
        assert await stored(broker, "results") == 1
    async with opened(tmp_path, idempotency_bytes=2_000) as (broker, _):
        for key in "bcdef":
            await publish(broker, 1, idempotency_key=key)
        await trio.sleep(0.5)
        assert await stored(broker, "results") == broker.statistics().results == 3


async def test_the_limit_of_the_file_drops_the_oldest(tmp_path: Path, often: None) -> None:
    """They are counted, and whoever comes back for them finds that they are gone."""
    async with opened(tmp_path, history_disk_limit=1 << 20) as (broker, _):
        await publish(broker, 4_000, size=1_000)
        await trio.sleep(1)
        seen = broker.statistics()
        assert seen.journal is not None
        assert seen.journal.used_bytes <= 1.1 * (1 << 20)
        kept, top = held(broker)
        assert top == 4_000
        assert 700 < kept < 1_000
        assert seen.dropped_publications == 4_000 - kept
    async with opened(tmp_path, history_bytes=400_000) as (broker, _):
        kept, top = held(broker)
        assert (kept < 400, top) == (True, 4_000)
        await trio.sleep(0.5)
        assert await stored(broker, "publications") == kept


async def test_the_file_gives_room_back(
    tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a large removal the file becomes small again, some pages at a time."""
    monkeypatch.setattr(journal, "_VACUUMED", 500)
    async with opened(tmp_path) as (broker, _):
        await publish(broker, 16_000, size=1_000)
        await trio.sleep(0.3)
        full = broker.statistics().journal
        assert full is not None
        assert full.file_bytes > 16_000_000
        await broker.remove_history("c").wait()
        for _ in range(100):
            await trio.sleep(0.2)
            seen = broker.statistics().journal
            assert seen is not None
            if seen.file_bytes < 8_000_000:
                break
        assert await stored(broker, "publications") == 0
    assert (tmp_path / "history.sqlite3").stat().st_size < 8_000_000


async def test_a_log_that_is_full_is_brought_into_the_file(tmp_path: Path) -> None:
    """However long the commits go on, the log has a bound."""
    async with opened(tmp_path) as (broker, _):
        for _ in range(8):
            await publish(broker, 8_000, size=1_000)
            assert await broker.with_journal(lambda journal: log_size(journal.path)) < 40_000_000


async def test_rows_without_a_stream_are_freed(tmp_path: Path, often: None) -> None:
    """A kill between two commits may leave them; the next start does not show them."""
    async with opened(tmp_path) as (broker, _):
        await publish(broker, 3)
        await broker.with_journal(
            lambda journal: journal.write(Changes(publications=[(99, 77, 1, b"x")]))
        )
    async with opened(tmp_path) as (broker, _):
        assert held(broker) == (3, 3)
        await trio.sleep(0.3)
        assert await stored(broker, "publications") == 3


class Clocks:
    """The machine's clock, which can be set, and one that cannot."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_000.0, 0.0

    def tick(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


def test_lifetimes_do_not_follow_a_step() -> None:
    """A step forwards forgets nothing early, one backwards keeps nothing for ever."""
    clocks = Clocks()
    clock = LifetimeClock(lambda: clocks.wall, lambda: clocks.steady)
    for step in (3_600.0, -90_000.0):
        clocks.tick(1)
        before, steps = clock(), clock.steps
        clocks.wall += step
        clock.follow()
        assert clock() == before
        assert clock.steps - steps == pytest.approx(step)
        assert clock() + clock.steps == pytest.approx(clocks.wall)


def test_lifetimes_follow_a_clock_that_is_corrected() -> None:
    """Two clocks that run at different speeds stay together."""
    clocks = Clocks()
    clock = LifetimeClock(lambda: clocks.wall, lambda: clocks.steady)
    for _ in range(1_000):
        clocks.tick(1)
        clocks.wall += 0.01
        clock.follow()
    assert clock() == pytest.approx(clocks.wall)
    assert clock.steps == 0


@pytest.mark.parametrize("step", [-7_200.0, 7_200.0])
async def test_a_step_while_the_process_runs(tmp_path: Path, often: None, step: float) -> None:
    """History and keys stay for their time; what the step did is told by the next start."""
    ahead = 0.0

    def now() -> float:
        import time

        return time.time() + ahead

    short = msgspec.structs.replace(LASTING, history_ttl=1_000, history_meta_ttl=10_000_000)
    async with opened(tmp_path, now=now) as (broker, _):
        await publish(broker, 1, short, idempotency_key="k")
        ahead = step
        await trio.sleep(0.4)
        assert held(broker) == (1, 1)
        await publish(broker, 1, short, idempotency_key="k")
        assert held(broker) == (1, 1)
    async with opened(tmp_path, now=now) as (broker, _):
        # After a step forwards the publication is older than its time, by the machine's clock.
        assert held(broker) == ((0 if step > 0 else 1), 1)


async def test_a_time_ahead_of_the_clock_ends_all_the_same(tmp_path: Path, often: None) -> None:
    """A clock that was wrong by years does not keep what it dated for years."""
    import time

    wrong: Callable[[], float] = lambda: time.time() + 1e9  # noqa: E731
    short = msgspec.structs.replace(LASTING, history_ttl=1, history_meta_ttl=10_000)
    async with opened(tmp_path, now=wrong) as (broker, _):
        await publish(broker, 1, short)
    async with opened(tmp_path) as (broker, _):
        assert held(broker) == (1, 1)
        await trio.sleep(1.5)
        assert held(broker) == (0, 1)
