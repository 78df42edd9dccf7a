"""Rows of other databases: published once, in order, and by nobody but who leads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec
import pytest

from repeater.brokers.contract import Broker, Outcome
from repeater.brokers.memory import MemoryBroker
from repeater.brokers.source_rows import SourceRow, SourceRows
from repeater.options import ChannelOptions
from repeater.publication import Publication
from repeater.testing.broker_rows import ROW_RULES, rows_outlive_keys
from repeater.testing.rules import hold
from tests.brokers import ForwardingBroker, LateBroker

_TTL = 5.0


def opened(make: Callable[[], Broker]) -> Callable[[], AbstractAsyncContextManager[Broker]]:
    @asynccontextmanager
    async def open_broker() -> AsyncIterator[Broker]:
        yield make()

    return open_broker


class RowBroker(ForwardingBroker):
    """A broker in memory that does something else with rows, by `changed`."""

    def changed(self, row: SourceRow) -> SourceRow | None:
        return row

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Outcome:
        return self.memory.submit(
            publication,
            options,
            idempotency_key=idempotency_key,
            skip_history=skip_history,
            row=row and self.changed(row),
        )


class Forgetful(RowBroker):
    """Remembers no row."""

    def changed(self, row: SourceRow) -> None:
        return None


class Lawless(RowBroker):
    """Takes rows of everybody, whatever the term."""

    def changed(self, row: SourceRow) -> SourceRow:
        return msgspec.structs.replace(row, term=1)


class Careless(RowBroker):
    """Does not ask what is before a row."""

    def changed(self, row: SourceRow) -> SourceRow:
        return msgspec.structs.replace(row, after="")


class OneSource(RowBroker):
    """Takes rows of the same name for the same row, whichever database they are of."""

    def changed(self, row: SourceRow) -> SourceRow:
        return msgspec.structs.replace(row, source="")

    def known_rows(self, source: str) -> Sequence[str]:
        return self.memory.known_rows("")

    def forget_rows(self, source: str, names: Sequence[str]) -> None:
        self.memory.forget_rows("", names)


class Hoarding(RowBroker):
    """Forgets nothing."""

    def forget_rows(self, source: str, names: Sequence[str]) -> None:
        pass


class Clearing(RowBroker):
    """Forgets all rows of a source instead of those that are named."""

    def forget_rows(self, source: str, names: Sequence[str]) -> None:
        self.memory.forget_rows(source, self.memory.known_rows(source))


class Expiring(ForwardingBroker):
    """Remembers a row by an idempotency key."""

    def __init__(self) -> None:
        super().__init__(MemoryBroker(idempotency_ttl=_TTL))

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Outcome:
        key = row.name if row else idempotency_key
        return self.memory.submit(
            publication, options, idempotency_key=key, skip_history=skip_history
        )


GOOD: list[Callable[[], Broker]] = [
    lambda: MemoryBroker(idempotency_ttl=_TTL),
    RowBroker,
    LateBroker,
]
BROKEN: dict[Callable[[], Broker], str] = {
    Forgetful: "A row that is found again publishes nothing",
    Lawless: "Who has a lower term",
    Careless: "A row whose `after` is not remembered",
    OneSource: "Another source may have rows of the same names",
    Hoarding: "A row that was forgotten is a new one",
    Clearing: "A row that was forgotten is a new one; others stay",
}


@pytest.mark.parametrize("make", GOOD, ids=["memory", "forwarding", "late"])
async def test_brokers_keep_the_rules(make: Callable[[], Broker], autojump_clock: object) -> None:
    """Every broker of this process publishes a row once, however long it is not forgotten."""
    await hold(ROW_RULES, opened(make))
    await rows_outlive_keys(opened(make), _TTL)


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
async def test_a_broken_broker_is_named(make: Callable[[], Broker], autojump_clock: object) -> None:
    """The rule that a broker breaks begins the text."""
    with pytest.raises(AssertionError, match=f"^{BROKEN[make]}"):
        await hold(ROW_RULES, opened(make))


async def test_a_key_is_not_enough(autojump_clock: object) -> None:
    """An idempotency key is forgotten while the row is still there: an outage may be longer."""
    with pytest.raises(AssertionError, match="the result: expected"):
        await rows_outlive_keys(opened(Expiring), _TTL)


def named(names: Iterable[str], term: int = 1) -> list[SourceRow]:
    return [SourceRow("s", term, name) for name in names]


def test_the_term_outlives_the_rows() -> None:
    """Rows come and go, but who was deposed stays so."""
    rows = SourceRows()
    for row in named("ab", term=2):
        assert rows.find(row) is None
        rows.keep(row, None)
    rows.forget("s", ["a", "b"])
    assert rows.names("s") == []
    with pytest.raises(Exception, match="leads with the term 2"):
        rows.find(SourceRow("s", 1, "a"))
