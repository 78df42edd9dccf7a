"""The rules of rows: each is published once, in order, and by nobody but who leads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import trio

from repeater.brokers.contract import Outcome
from repeater.brokers.receipts import settled
from repeater.brokers.source_rows import AfterError, DeposedError, SourceRow
from repeater.errors import BrokerError
from repeater.publication import Publication
from repeater.testing.broker_bench import LASTING, Bench, OpenBroker, data_of, offsets_of, running
from repeater.testing.rules import expect

_MANY: Final = 200
_KEEPING_ALL: Final = msgspec.structs.replace(LASTING, history_size=_MANY)


def _row(bench: Bench, name: str, *, term: int = 1, after: str = "") -> SourceRow:
    """A row of a source of this bench alone: a broker may keep what it has between two rules."""
    return SourceRow(bench.channel[-36:], term, name, after)


async def _publish(
    bench: Bench, row: SourceRow, data: bytes = b"1", *, channel: str = "", key: str = ""
) -> Outcome:
    publication = Publication(channel or bench.channel, data)
    await bench.hold(publication.channel)
    return await settled(await bench.submit(publication, key=key, row=row))


async def _names(bench: Bench) -> list[str]:
    known: Sequence[str] = await settled(bench.broker.known_rows(_row(bench, "").source))
    return sorted(known)


async def _forget(bench: Bench, *names: str) -> None:
    await settled(bench.broker.forget_rows(_row(bench, "").source, names))


async def _error(bench: Bench, row: SourceRow) -> BrokerError | None:
    try:
        await _publish(bench, row)
    except BrokerError as error:
        return error
    return None


async def a_row_is_published_once(open_broker: OpenBroker) -> None:
    """A row that is found again publishes nothing and gets the first result."""
    async with running(open_broker) as bench:
        first = await _publish(bench, _row(bench, "a"), b"1")
        expect("the second result", await _publish(bench, _row(bench, "a"), b"2"), first)
        expect("another row", await _publish(bench, _row(bench, "b"), b"3") != first, True)
        expect("what is handed on", data_of(await bench.handed_on(2)), [b"1", b"3"])
        expect("what is kept", data_of((await bench.history())[0]), [b"1", b"3"])
        expect("rows that are remembered", await _names(bench), ["a", "b"])


async def a_row_without_history(open_broker: OpenBroker) -> None:
    """A row in a channel that keeps no history is remembered as well: its result is None."""
    bare = msgspec.structs.replace(LASTING, history_size=0)
    async with running(open_broker, options=bare) as bench:
        for data in (b"1", b"2"):
            expect("the result", await _publish(bench, _row(bench, "a"), data), None)
        await _publish(bench, _row(bench, "b"), b"3")
        expect("what is handed on", data_of(await bench.handed_on(2)), [b"1", b"3"])


async def rows_of_two_sources(open_broker: OpenBroker) -> None:
    """Another source may have rows of the same names, and terms of its own."""
    async with running(open_broker) as bench:
        other = msgspec.structs.replace(_row(bench, "a", term=9), source=f"o{bench.channel[-36:]}")
        await _publish(bench, other)
        expect("a failure", await _error(bench, _row(bench, "a", term=1)), None)
        expect("offsets", offsets_of(await bench.handed_on(2)), [1, 2])
        expect("rows of the source", await _names(bench), ["a"])


async def forgotten_rows(open_broker: OpenBroker) -> None:
    """A row that was forgotten is a new one; others stay; to forget twice is to do it once."""
    async with running(open_broker) as bench:
        for name in "abc":
            await _publish(bench, _row(bench, name))
        for _ in range(2):
            await _forget(bench, "a", "c", "never")
        expect("rows that are remembered", await _names(bench), ["b"])
        again = await _publish(bench, _row(bench, "a"))
        expect("the offset of the new one", again and again.offset, 4)
        await _forget(bench)


async def rows_are_forgotten_behind_submissions(open_broker: OpenBroker) -> None:
    """`forget_rows` is carried out after all that was submitted before it."""
    async with running(open_broker, room=_MANY, options=_KEEPING_ALL) as bench:
        await bench.hold()
        names = [f"n{number}" for number in range(50)]
        for name in names:
            await bench.submit(Publication(bench.channel, b"1"), row=_row(bench, name))
        await _forget(bench, *names)
        expect("rows that are remembered", await _names(bench), [])


async def a_deposed_term(open_broker: OpenBroker) -> None:
    """Who has a lower term than another one before publishes nothing, known rows included."""
    async with running(open_broker) as bench:
        await _publish(bench, _row(bench, "a", term=2**52))
        await _publish(bench, _row(bench, "b", term=2**52 + 1))
        for name in ("a", "c"):
            error = await _error(bench, _row(bench, name, term=2**52))
            expect("the failure", type(error), DeposedError)
            assert isinstance(error, DeposedError)
            expect("the term that leads", error.term, 2**52 + 1)
        await _forget(bench, "a", "b")
        error = await _error(bench, _row(bench, "c", term=1))
        expect("the failure when all rows are forgotten", type(error), DeposedError)
        expect("what is kept", offsets_of((await bench.history())[0]), [1, 2])


async def a_row_behind_another(open_broker: OpenBroker) -> None:
    """A row whose `after` is not remembered is not published, nor are those behind it."""
    async with running(open_broker) as bench:
        expect("the failure", type(await _error(bench, _row(bench, "b", after="a"))), AfterError)
        expect("the next one", type(await _error(bench, _row(bench, "c", after="b"))), AfterError)
        await _publish(bench, _row(bench, "a"), b"1")
        await _publish(bench, _row(bench, "b", after="a"), b"2")
        await _publish(bench, _row(bench, "c", after="b"), b"3")
        expect("what is kept", data_of((await bench.history())[0]), [b"1", b"2", b"3"])


async def a_known_row_needs_nothing_before_it(open_broker: OpenBroker) -> None:
    """A row that is remembered gets its result, though the one before it is forgotten."""
    async with running(open_broker) as bench:
        await _publish(bench, _row(bench, "a"))
        first = await _publish(bench, _row(bench, "b", after="a"))
        await _forget(bench, "a")
        expect("the result", await _publish(bench, _row(bench, "b", after="a")), first)


async def many_rows_in_a_row(open_broker: OpenBroker) -> None:
    """Rows that are submitted without waiting, each behind the one before, keep their order."""
    wanted = [b"%d" % number for number in range(_MANY)]
    async with running(open_broker, room=2 * _MANY, options=_KEEPING_ALL) as bench:
        await bench.hold()
        before, answers = "", []
        for data in wanted:
            row = _row(bench, f"n{data.decode()}", after=before)
            answers.append(await bench.submit(Publication(bench.channel, data), row=row))
            before = row.name
        offsets = [one and one.offset for one in [await settled(answer) for answer in answers]]
        expect("offsets", offsets, [*range(1, _MANY + 1)])
        expect("what is kept", data_of((await bench.history())[0]), wanted)
        expect("how many are remembered", len(await _names(bench)), _MANY)


async def a_row_with_a_key(open_broker: OpenBroker) -> None:
    """The idempotency key of a row counts as ever: what was published with it is the result."""
    async with running(open_broker) as bench:
        first = await bench.numbered(b"1", key="k")
        expect("the row's result", await _publish(bench, _row(bench, "a"), b"2", key="k"), first)
        expect("rows that are remembered", await _names(bench), ["a"])
        expect("what is kept", data_of((await bench.history())[0]), [b"1"])


async def rows_outlive_keys(open_broker: OpenBroker, idempotency_ttl: float) -> None:
    """A row is remembered until it is forgotten, however long an idempotency key lives."""
    async with running(open_broker) as bench:
        first = await _publish(bench, _row(bench, "a"), key="k")
        await trio.sleep(idempotency_ttl + 1)
        expect("the result", await _publish(bench, _row(bench, "a"), key="k"), first)


ROW_RULES: Final = (
    a_row_is_published_once,
    a_row_without_history,
    rows_of_two_sources,
    forgotten_rows,
    rows_are_forgotten_behind_submissions,
    a_deposed_term,
    a_row_behind_another,
    a_known_row_needs_nothing_before_it,
    many_rows_in_a_row,
    a_row_with_a_key,
)
