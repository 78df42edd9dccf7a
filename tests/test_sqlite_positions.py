"""A client that has seen more than the file has: the file is an older copy, and all are told."""

from __future__ import annotations

import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from repeater.brokers.receipts import settled
from repeater.brokers.sqlite.broker import SQLiteBroker
from repeater.brokers.sqlite.journal import FILE, Journal
from repeater.brokers.sqlite.opening import open_sqlite_broker
from repeater.brokers.sqlite.records import Changes
from repeater.options import ChannelOptions
from repeater.publication import Event, Publication, StreamPosition
from tests.deadlines import LOOP_ANSWERS

pytestmark = pytest.mark.timeout(60)


class Discard:
    """A sink with room for everything, for whose events nobody waits."""

    async def wait_room(self) -> None:
        await trio.lowlevel.checkpoint()

    def check_room(self) -> None:
        pass

    def put_nowait(self, event: Event, weight: int = 0) -> None:
        pass


KEPT = ChannelOptions(history_size=100, history_ttl=600, history_meta_ttl=6_000)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[SQLiteBroker]:
    with trio.fail_after(LOOP_ANSWERS):
        async with open_sqlite_broker(folder) as broker, trio.open_nursery() as nursery:
            nursery.start_soon(broker.run, Discard())
            await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            yield broker
            nursery.cancel_scope.cancel()


async def publish(broker: SQLiteBroker, channel: str, count: int = 1) -> StreamPosition:
    outcome = None
    for _ in range(count):
        outcome = await settled(broker.submit(Publication(channel, b"1"), KEPT))
    assert outcome is not None
    return outcome


def top(broker: SQLiteBroker, channel: str, since: StreamPosition | None = None) -> StreamPosition:
    return broker.history(channel, KEPT, since=since, limit=0)[1]


async def copied(folder: Path, channel: str, kept: int) -> StreamPosition:
    """A folder whose file has `kept` publications of 6, as a copy that was put back has them.

    Returns the position of a client that has seen all of them.
    """
    async with running(folder) as broker:
        await publish(broker, "other")
        if kept:
            await publish(broker, channel, kept)
    await trio.to_thread.run_sync(shutil.copy, folder / FILE, folder / "copy")
    async with running(folder) as broker:
        seen = await publish(broker, channel, 6 - kept)
    await trio.to_thread.run_sync((folder / "copy").replace, folder / FILE)
    return seen


async def test_a_channel_of_the_file(tmp_path: Path) -> None:
    """Its epoch is another one from then on, also over a restart; other channels keep theirs."""
    seen = await copied(tmp_path, "news", 3)
    async with running(tmp_path) as broker:
        other = top(broker, "other")
        assert top(broker, "news") == StreamPosition(3, seen.epoch)
        told = top(broker, "news", seen)
        assert told.offset == 3
        assert told.epoch != seen.epoch
        publications, _ = broker.history("news", KEPT)
        assert {one.epoch for one in publications} == {told.epoch}
        assert await publish(broker, "news") == StreamPosition(4, told.epoch)
    async with running(tmp_path) as broker:
        assert top(broker, "news") == StreamPosition(4, told.epoch)
        assert top(broker, "other") == other


async def test_once_for_each_start(tmp_path: Path) -> None:
    """A stranger may invent positions; only the first one can cost anybody anything."""
    seen = await copied(tmp_path, "news", 3)
    async with running(tmp_path) as broker:
        told = top(broker, "news", seen)
        assert top(broker, "news", StreamPosition(99, told.epoch)) == told
        first = top(broker, "empty")
        renewed = top(broker, "empty", StreamPosition(99, first.epoch))
        assert renewed.epoch != first.epoch
        assert top(broker, "empty", StreamPosition(99, renewed.epoch)) == renewed
    async with running(tmp_path / "new") as broker:
        first = await publish(broker, "news")
        assert top(broker, "news", StreamPosition(99, first.epoch)) == first


async def test_a_position_that_is_behind_or_of_another_epoch(tmp_path: Path) -> None:
    """It says nothing of the file."""
    seen = await copied(tmp_path, "news", 3)
    async with running(tmp_path) as broker:
        for since in (
            StreamPosition(3, seen.epoch),
            StreamPosition(9, "other"),
            StreamPosition(9, ""),
        ):
            assert top(broker, "news", since) == StreamPosition(3, seen.epoch)


async def test_a_channel_that_the_file_does_not_have(tmp_path: Path) -> None:
    """It began after the copy was made: its name gets another epoch, too."""
    seen = await copied(tmp_path, "news", 0)
    async with running(tmp_path) as broker:
        assert top(broker, "news") == StreamPosition(0, seen.epoch)
        told = top(broker, "news", seen)
        assert told.epoch != seen.epoch
        assert await publish(broker, "news") == StreamPosition(1, told.epoch)


async def test_a_channel_that_has_begun_again_since(tmp_path: Path) -> None:
    """Under the epoch that the file's other future gave it, before anybody came back."""
    seen = await copied(tmp_path, "news", 0)
    async with running(tmp_path) as broker:
        assert await publish(broker, "news") == StreamPosition(1, seen.epoch)
        told = top(broker, "news", seen)
        assert told.offset == 1
        assert told.epoch != seen.epoch
        assert await publish(broker, "news") == StreamPosition(2, told.epoch)


@pytest.mark.parametrize("kept", [0, 3])
async def test_while_a_commit_is_under_way(
    tmp_path: Path, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has numbered publications under the old epoch; the new one follows it, and loses none."""
    seen = await copied(tmp_path, "news", kept)
    begun, gate = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    write = Journal.write

    def slow(journal: Journal, changes: Changes) -> None:
        if changes.publications and not gate.is_set():
            trio.from_thread.run_sync(begun.set, trio_token=token)
            assert gate.wait(LOOP_ANSWERS)
        write(journal, changes)

    async with running(tmp_path) as broker:
        monkeypatch.setattr(Journal, "write", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, broker, "news")
            await begun.wait()
            assert top(broker, "news", seen) == StreamPosition(kept, seen.epoch)  # ahead: told
            gate.set()
        after = top(broker, "news")
        assert after.offset == kept + 1
        assert after.epoch != seen.epoch
        assert await publish(broker, "news") == StreamPosition(kept + 2, after.epoch)
    async with running(tmp_path) as broker:
        publications, at = broker.history("news", KEPT)
        assert [one.offset for one in publications] == list(range(1, kept + 3))
        assert at == StreamPosition(kept + 2, after.epoch)
