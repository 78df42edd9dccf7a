"""The thread that uses the file: its turns, what it returns, and what cancellation does to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.brokers.receipts import Receipt
from repeater.brokers.sqlite.journal import Journal
from repeater.brokers.sqlite.records import Changes
from repeater.brokers.sqlite.writer import Writer, open_writer
from repeater.publication import Publication
from repeater.testing.broker_bench import LASTING
from tests.deadlines import LOOP_ANSWERS
from tests.durable import opened


@contextmanager
def blocked(writer: Writer, nursery: trio.Nursery) -> Iterator[None]:
    """A call that runs for as long as the block."""
    gate = threading.Event()
    nursery.start_soon(writer.run, gate.wait)
    yield
    gate.set()


async def test_it_returns_and_raises_what_the_call_does() -> None:
    """In another thread, and the next call is not disturbed."""
    with open_writer() as writer, trio.fail_after(LOOP_ANSWERS):
        assert await writer.run(threading.get_ident) != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await writer.run(lambda: 1 // 0)
        assert await writer.run(lambda: "next") == "next"


async def test_calls_take_turns_in_their_order() -> None:
    """Also behind a task that asks again and again."""
    done: list[str] = []

    async def ask(name: str, times: int = 1) -> None:
        for _ in range(times):
            await writer.run(lambda: done.append(name))

    with open_writer() as writer, trio.fail_after(LOOP_ANSWERS):
        async with trio.open_nursery() as nursery:
            with blocked(writer, nursery):
                await wait_all_tasks_blocked()
                for name in ("a", "b", "c"):
                    nursery.start_soon(ask, name, 2)
                    await wait_all_tasks_blocked()
    assert done == [*"abcabc"]


async def test_cancelled_before_its_turn_it_does_not_run() -> None:
    """While another call runs, and where nothing runs; the others go on."""
    done: list[str] = []
    with open_writer() as writer, trio.fail_after(LOOP_ANSWERS):
        async with trio.open_nursery() as nursery:
            with blocked(writer, nursery):
                await wait_all_tasks_blocked()
                with trio.move_on_after(0.01) as scope:
                    await writer.run(lambda: done.append("late"))
        assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            scope.cancel()
            await writer.run(lambda: done.append("never"))
        await writer.run(lambda: done.append("then"))
    assert done == ["then"]


async def test_cancelled_in_its_turn_it_is_waited_for() -> None:
    """Its caller hears what it did."""
    gate = threading.Event()
    said: list[bool] = []

    async def ask() -> None:
        said.append(await writer.run(gate.wait))

    with open_writer() as writer, trio.fail_after(LOOP_ANSWERS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            gate.set()
        assert said == [True]
        assert not writer.abandoned


async def test_a_call_that_does_not_end_is_abandoned() -> None:
    """Its caller ends by its own cancellation, and the end of the block does not wait."""
    gate = threading.Event()
    patience = trio.CancelScope(shield=True, deadline=trio.current_time() + 0.05)
    try:
        with trio.fail_after(LOOP_ANSWERS), open_writer() as writer:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_later, scope)
                    await writer.run(gate.wait, patience)
            assert writer.abandoned
    finally:
        gate.set()


async def _cancel_later(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


@pytest.mark.parametrize(("turn", "shares"), [(100, True), (4, False)])
async def test_a_stream_shares_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: int, shares: bool
) -> None:
    """While each turn brings many, their commit waits for more; a few are committed at once."""
    sizes: list[int] = []
    write = Journal.write

    def noted(journal: Journal, changes: Changes) -> None:
        sizes.append(len(changes.publications))
        write(journal, changes)

    async with opened(tmp_path) as (broker, _):
        monkeypatch.setattr(Journal, "write", noted)
        for _ in range(5):
            for _ in range(turn):
                last = broker.submit(Publication("c", b"1"), LASTING)
            await trio.lowlevel.checkpoint()
        assert isinstance(last, Receipt)
        await last.wait()
        sizes = [size for size in sizes if size]
        assert sum(sizes) == 5 * turn
        # The task that commits runs one pass after the first of them.
        assert (sizes[0] > 2 * turn) == shares
