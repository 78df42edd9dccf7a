"""What a look at the table costs while a snapshot is held, so that no dead row goes away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Final

import psycopg

from benchmarks.outbox.databases import Connection, database

_A_SECOND: Final = 1_000  # rows that are published and removed
_LOOKS: Final = 51
_TAKE: Final = "SELECT id FROM repeater.take(%s::pg_snapshot, '{}', 1000, 8000000, 500000)"
_PUBLISH: Final = "SELECT repeater.publish('news', '{\"n\": 1}') FROM generate_series(1, 100)"


def held_snapshot(version: int, seconds: float) -> Iterator[str]:
    """The time of a look that finds nothing new, before and after, and of one that finds a row."""
    yield f"a snapshot is held for {seconds:.0f} s, while {_A_SECOND:,} rows a second come and go"
    with (
        database(version) as server,
        psycopg.connect(server.url, autocommit=True) as session,
        psycopg.connect(server.url) as holder,
    ):
        session.execute("SELECT set_config('jit', 'off', false)")
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT 1")
        _come_and_go(session)
        first = _looks(session)
        dead = _A_SECOND
        for _ in _seconds(seconds):
            _come_and_go(session)
            dead += _A_SECOND
        last = _looks(session)
    for name, before, after in zip(("nothing new", "one new row"), first, last, strict=True):
        yield (
            f"a look that finds {name}: {before:.3f} ms at the start, {after:.3f} ms with"
            f" {dead:,} dead rows: {after / before:.2f} x"
        )


def _seconds(seconds: float) -> Iterator[int]:
    begun = time.monotonic()
    number = 0
    while time.monotonic() - begun < seconds:
        yield number
        number += 1
        time.sleep(max(0.0, begun + number - time.monotonic()))


def _come_and_go(session: Connection) -> None:
    for _ in range(_A_SECOND // 100):
        session.execute(_PUBLISH)
        taken = session.execute(_TAKE, (None,)).fetchall()
        ids = [row[0] for row in taken if row[0] is not None]
        session.execute("SELECT repeater.done(%s, '{}', '{}')", (ids,))


def _looks(session: Connection) -> tuple[float, float]:
    """Milliseconds of a look that finds nothing, and of one that finds a row; medians."""
    nothing, one = [], []
    for _ in range(_LOOKS):
        seen = session.execute("SELECT pg_current_snapshot()::text").fetchall()[0][0]
        nothing.append(_timed(session, seen, 1))
        session.execute("SELECT repeater.publish('news', '1')")
        one.append(_timed(session, seen, 2))
        session.execute("SELECT repeater.done(ARRAY(SELECT id FROM repeater.outgoing), '{}', '{}')")
    return median(nothing), median(one)


def _timed(session: Connection, seen: str, expected: int) -> float:
    begun = time.perf_counter()
    found = session.execute(_TAKE, (seen,)).fetchall()
    took = time.perf_counter() - begun
    assert len(found) == expected
    return took * 1_000
