"""Rows of other databases in a durable history: they outlive the process, and no failed commit."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from repeater.brokers.contract import Outcome
from repeater.brokers.receipts import Receipt
from repeater.brokers.source_rows import AfterError, DeposedError, SourceRow, SourceRows
from repeater.brokers.sqlite.broker import SQLiteBroker
from repeater.brokers.sqlite.errors import JournalError
from repeater.brokers.sqlite.records import Changes
from repeater.brokers.sqlite.rows import RowChanges, StoredRows
from repeater.errors import BrokerError
from repeater.options import ChannelOptions
from repeater.publication import Publication, StreamPosition
from repeater.testing.broker_bench import LASTING
from tests.durable import Disk, opened

pytestmark = pytest.mark.timeout(60)

BARE: Final = ChannelOptions(history_size=0)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def submit(
    broker: SQLiteBroker,
    name: str,
    *,
    term: int = 1,
    after: str = "",
    options: ChannelOptions = LASTING,
) -> Receipt[Outcome]:
    row = SourceRow("s", term, name, after)
    channel = "c" if options is LASTING else "bare"
    answer = broker.submit(Publication(channel, b"1"), options, row=row)
    assert isinstance(answer, Receipt)
    return answer


async def test_rows_and_terms_outlive_the_process(tmp_path: Path) -> None:
    """Another process gives the first results, and takes nothing of a lower term."""
    async with opened(tmp_path) as (broker, _):
        first = await submit(broker, "a", term=5).wait()
        bare = await submit(broker, "b", term=5, options=BARE).wait()
        await submit(broker, "c", term=6).wait()
        await broker.forget_rows("s", ["c"]).wait()
    async with opened(tmp_path) as (broker, _):
        assert sorted(broker.known_rows("s")) == ["a", "b"]
        assert await submit(broker, "a", term=6).wait() == first
        assert await submit(broker, "b", term=6, options=BARE).wait() == bare is None
        with pytest.raises(DeposedError, match="the term 6"):
            await submit(broker, "d", term=5).wait()
        assert broker.history("c", LASTING, limit=0)[1].offset == 2


async def test_a_commit_that_fails_remembers_nothing(tmp_path: Path, disk: Disk) -> None:
    """Neither rows nor terms; nothing is forgotten; rows behind a failed one fail as well."""
    async with opened(tmp_path) as (broker, _):
        await submit(broker, "kept").wait()
        disk.error = JournalError("disk full", full=True)
        answers = [
            submit(broker, "a", term=9),
            submit(broker, "b", term=9, after="a"),
            submit(broker, "bare", term=9, options=BARE),
        ]
        forgotten = broker.forget_rows("s", ["kept"])
        for one in answers:
            with pytest.raises(BrokerError, match="disk full"):
                await one.wait()
        with pytest.raises(BrokerError, match="disk full"):
            await forgotten.wait()
        for refused in (lambda: submit(broker, "c"), lambda: broker.forget_rows("s", ["kept"])):
            with pytest.raises(BrokerError, match="disk full"):
                refused()
        assert broker.known_rows("s") == ["kept"]
        disk.error = None
        while broker.outage():  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.01)
        with pytest.raises(AfterError):
            await submit(broker, "b", after="a").wait()
        position = await submit(broker, "a").wait()
        assert position is not None
        assert position.offset == 2


async def test_a_row_without_history_waits_for_the_disk(tmp_path: Path, disk: Disk) -> None:
    """It is handed on by the commit that remembers it: else it would be published twice."""
    async with opened(tmp_path) as (broker, intake):
        disk.error = JournalError("disk full", full=True)
        with pytest.raises(BrokerError):
            await submit(broker, "a", options=BARE).wait()
        assert len(intake) == 0


NAMES = st.sampled_from("abc")
STEP = st.one_of(
    st.tuples(st.just("find"), NAMES, st.integers(1, 3), st.sampled_from(["", "a", "b"])),
    st.tuples(st.just("forget"), NAMES, st.just(0), st.just("")),
)


def carry_out(rows: SourceRows, step: tuple[str, str, int, str], offset: int) -> object:
    kind, name, term, after = step
    if kind == "forget":
        rows.forget("s", [name])
        return None
    row = SourceRow("s", term, name, after)
    try:
        known = rows.find(row)
    except BrokerError as error:
        return str(error)
    if known is None:
        rows.keep(row, StreamPosition(offset, "e"))
    return known


@given(st.lists(st.tuples(st.booleans(), st.lists(STEP, max_size=6)), max_size=6))
def test_commits_that_succeed_are_all_that_happened(
    commits: list[tuple[bool, list[tuple[str, str, int, str]]]],
) -> None:
    """After any commits, some of which failed, the rows are those of the others alone."""
    plain, stored = SourceRows(), StoredRows()
    offset = 0
    for succeeds, steps in commits:
        changing = RowChanges(stored)
        for step in steps:
            offset += 1
            found = carry_out(changing, step, offset)
            if succeeds:
                assert found == carry_out(plain, step, offset)
        if succeeds:
            changes = Changes()
            changing.give_changes(changes)
            changing.apply(changes)
    assert sorted(stored.names("s")) == sorted(plain.names("s"))
    assert stored.term("s") == plain.term("s")
    for name in "abc":
        assert stored.result("s", name) == plain.result("s", name)
