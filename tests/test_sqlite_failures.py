"""A durable broker whose disk is full, fails or does not answer: what goes on, what returns."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import trio

from repeater.brokers.receipts import Receipt, settled
from repeater.brokers.sqlite import committer, reserve
from repeater.brokers.sqlite.broker import SQLiteBroker
from repeater.brokers.sqlite.errors import JournalError
from repeater.brokers.sqlite.journal import Journal
from repeater.brokers.sqlite.reserve import FILE as RESERVE
from repeater.errors import BrokerError
from repeater.options import ChannelOptions
from repeater.publication import Announcement, ClientInfo, Publication, StreamPosition
from repeater.testing.broker_bench import LASTING
from tests.durable import Disk, opened

pytestmark = pytest.mark.timeout(60)

BARE: Final = ChannelOptions(history_size=0)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


async def until_served(broker: SQLiteBroker) -> None:
    """Publish until that succeeds: a disk that failed is tried again once a second."""
    while True:
        with suppress(BrokerError):
            await publish(broker)
            return
        await trio.sleep(0.01)


async def publish(
    broker: SQLiteBroker, data: bytes = b"1", options: ChannelOptions = LASTING, **more: Any
) -> StreamPosition | None:
    return await settled(broker.submit(Publication("c", data), options, **more))


def top(broker: SQLiteBroker) -> int:
    return broker.history("c", LASTING, limit=0)[1].offset


@pytest.mark.parametrize("full", [True, False])
async def test_a_disk_that_fails_is_tried_once_a_second(
    tmp_path: Path, disk: Disk, full: bool
) -> None:
    """Publishers are refused at once meanwhile, and after a second of room they are served."""
    async with opened(tmp_path) as (broker, _):
        await publish(broker)
        disk.error = JournalError("disk full", full=full)
        with pytest.raises(BrokerError, match=r"^history: disk full$"):
            await publish(broker)
        assert broker.outage() == "history: disk full"
        disk.tries = 0
        with trio.move_on_after(2.5):
            while True:
                with pytest.raises(BrokerError):
                    await publish(broker)
                with pytest.raises(BrokerError):
                    broker.remove_history("c")
                await trio.sleep(0.01)
        assert 2 <= disk.tries <= 4
        assert top(broker) == 1
        disk.error = None
        await trio.sleep(1)
        position = await publish(broker)
        assert position is not None
        assert position.offset == 2
        assert broker.outage() == ""
        seen = broker.statistics().journal
        assert seen is not None
        assert seen.failures >= 3


async def test_what_needs_no_disk_goes_on(tmp_path: Path, disk: Disk) -> None:
    """Live events, joins and channels without history are handed on, in order; reads are answered.

    So is an idempotency key, which later comes into the file.
    """
    joined = Announcement("c", ClientInfo("ann", "1"), joined=True)
    async with opened(tmp_path) as (broker, intake):
        await publish(broker, b"1")
        disk.error = JournalError("the disk is read-only")
        lost = broker.submit(Publication("c", b"lost"), LASTING)
        assert await publish(broker, b"2", skip_history=True) is None
        broker.announce(joined)
        assert isinstance(lost, Receipt)
        with pytest.raises(BrokerError):
            await lost.wait()
        assert await publish(broker, b"3", BARE) is None
        assert await publish(broker, b"4", BARE, idempotency_key="k") is None
        assert await publish(broker, b"5", BARE, idempotency_key="k") is None
        events = await intake.take_batch()
        while len(events) < 5:
            events += await intake.take_batch()
        assert [one.data for one in events] == [b"1", b"2", b"", b"3", b"4"]
        disk.error = None
        await trio.sleep(1.2)
        await publish(broker, b"6")
    async with opened(tmp_path) as (broker, _):
        assert await publish(broker, b"7", BARE, idempotency_key="k") is None
        assert [one.data for one in broker.history("c", LASTING)[0]] == [b"6"]


async def test_the_reserve_is_given_up_and_made_anew(tmp_path: Path, disk: Disk) -> None:
    """It makes room for what frees rows; with other failures it stays."""
    held = tmp_path / RESERVE
    async with opened(tmp_path) as (broker, _):
        assert held.stat().st_size == held.stat().st_blocks * 512 == 16 * 1024 * 1024
        for full, there in ((False, True), (True, False)):
            disk.error = JournalError("failing", full=full)
            with pytest.raises(BrokerError):
                await publish(broker)
            seen = disk.tries + 2  # with the second one, the first one's work is done
            while disk.tries < seen or held.exists() is not there:  # noqa: ASYNC110  # a thread's
                await trio.sleep(0.01)
            disk.error = None
            await until_served(broker)
            assert held.exists()


async def test_a_full_file_system_is_told_until_there_is_room_for_the_reserve(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the disk would be filled again with the room that frees what expired."""
    free = 1 << 40
    monkeypatch.setattr(reserve, "_free", lambda folder: free)
    async with opened(tmp_path) as (broker, _):
        disk.error = JournalError("disk full", full=True)
        with pytest.raises(BrokerError):
            await publish(broker)
        disk.error, free = None, 1 << 20
        await trio.sleep(1)
        assert broker.outage() == "history: disk full"
        free = 16 << 20
        await trio.sleep(1)
        assert broker.outage() == "history: disk full"
        free = 17 << 20
        await trio.sleep(1)
        assert await publish(broker)
        assert (tmp_path / RESERVE).stat().st_size == 16 << 20


async def test_expired_rows_go_on_a_full_disk(tmp_path: Path, disk: Disk) -> None:
    """They are gone from the file as soon as it can be written, without a publish."""
    short = msgspec.structs.replace(LASTING, history_ttl=0.5)
    async with opened(tmp_path) as (broker, _):
        await publish(broker, b"1", short)
        disk.error = JournalError("disk full", full=True)
        await trio.sleep(2)
        assert broker.history("c", short)[0] == ()
        disk.error = None
        await trio.sleep(1.5)
        assert await broker.with_journal(_rows) == 0


def _rows(journal: Journal) -> int:
    return sum(len(rows) for rows in journal.publications())


async def test_commits_are_measured(tmp_path: Path, disk: Disk) -> None:
    """Their number and time, failures, the sizes, and what waits."""
    async with opened(tmp_path) as (broker, _):
        for _ in range(3):
            await publish(broker)
        await trio.sleep(1.2)
        disk.error = JournalError("the disk fails")
        with pytest.raises(BrokerError):
            await publish(broker)
        seen = broker.statistics().journal
        assert seen is not None
        assert seen.commit_seconds.count >= 3
        assert 0 < seen.commit_seconds.total < 3
        assert seen.failures == 1
        assert seen.file_bytes >= seen.used_bytes > 4_096
        assert (seen.waiting, seen.lag) == (0, 0.0)


async def test_a_disk_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an outage after a time, and the end of the broker does not wait for ever."""
    monkeypatch.setattr(committer, "_HANGING", 0.2)
    monkeypatch.setattr(committer, "_LAST_COMMIT", 0.3)
    answers = threading.Event()
    write = Journal.write

    def late(journal: Journal, changes: Any) -> None:
        answers.wait()
        write(journal, changes)

    try:
        async with opened(tmp_path) as (broker, _):
            monkeypatch.setattr(Journal, "write", late)
            receipt = broker.submit(Publication("c", b"1"), LASTING)
            assert isinstance(receipt, Receipt)
            await trio.sleep(0.5)
            assert broker.outage() == "history: the disk does not answer"
            seen = broker.statistics().journal
            assert seen is not None
            assert (seen.waiting, seen.lag > 0.4) == (1, True)
        with pytest.raises(BrokerError, match="the broker has ended"):
            await receipt.wait()
    finally:
        answers.set()


def test_a_small_disk_has_a_small_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the room that there was; later it grows, and never becomes smaller."""
    free = 6 << 20

    def room(folder: Path) -> int:
        return free

    monkeypatch.setattr(reserve, "_free", room)
    one = reserve.Reserve(tmp_path)
    assert one.renew()
    assert one.bytes == 3 << 20
    free = 1 << 20
    assert one.renew()
    assert one.bytes == 3 << 20
    one.give_up()
    assert one.bytes == 0
    free = 4 << 20
    assert one.renew()
    assert one.bytes == 3 << 20
    free = 1 << 30
    assert one.renew()
    assert one.bytes == 16 << 20
    tiny = reserve.Reserve(tmp_path / "tiny")
    free = 1 << 20
    assert not tiny.renew()


async def test_it_starts_on_a_full_disk(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reserve makes room for the first commit; history can be read."""
    async with opened(tmp_path) as (broker, _):
        await publish(broker)
    give_up = reserve.Reserve.give_up

    def given(one: reserve.Reserve) -> None:
        give_up(one)
        disk.error = None

    monkeypatch.setattr(reserve.Reserve, "give_up", given)
    disk.error = JournalError("disk full", full=True)
    async with opened(tmp_path) as (broker, _):
        assert top(broker) == 1
    disk.error = JournalError("the disk fails")
    with pytest.raises(BrokerError, match="the disk fails"):
        async with opened(tmp_path):
            raise AssertionError("it started")
