"""One lead: rows go to the engine once, in order, and leave the table."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
import trio
from trio.testing import MockClock

from repeater.brokers.receipts import settled
from repeater.brokers.source_rows import SourceRow
from repeater.errors import BrokerError
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.outgoing.lead import ROWS, SIZE, Counts
from repeater.publication import Publication
from repeater.testing import open_test_node
from tests.outgoing_world import SOURCE, FaultyBroker, Table, lead_of, leading

OPTIONS = NodeOptions(
    channel=ChannelOptions(history_size=10_000, history_ttl=3_600),
    namespaces={"bytes": ChannelOptions(publication_data_format="binary")},
)


async def data_in(node: Node, channel: str) -> list[str]:
    publications, _top = await node.history(channel)
    return [bytes(one.data).decode() for one in publications]


async def known(node: Node) -> list[str]:
    names: Sequence[str] = await settled(node.broker.known_rows(SOURCE))
    return sorted(names)


async def test_what_is_committed_is_published_and_removed(autojump_clock: MockClock) -> None:
    """What is there at the start, and what comes then; the engine keeps no name."""
    table, counts = Table(), Counts()
    table.commit(table.new("a"), table.new("b"))
    async with open_test_node(OPTIONS, broker=FaultyBroker()) as node:
        async with leading(node, table, counts):
            await trio.sleep(1)
            table.commit(table.new("a"))
            await trio.sleep(1)
        assert await data_in(node, "a") == ["1", "3"]
        assert await data_in(node, "b") == ["2"]
        assert await known(node) == []
    assert table.there == {}
    assert counts == Counts(moved=3)


async def test_all_of_a_row_is_published(autojump_clock: MockClock) -> None:
    """Tags, key, version and its epoch count as those of the API."""
    table = Table()
    first = table.new("a", tags=b'{"kind": "x"}', version=b"7", version_epoch="e")
    table.commit(first, table.new("a", version=b"6", version_epoch="e"))
    table.commit(table.new("b", key="k"), table.new("b", key="k"))
    async with open_test_node(OPTIONS) as node, leading(node, table):
        await trio.sleep(1)
        publications, _top = await node.history("a")
        assert [one.tags for one in publications] == [{"kind": "x"}]
        assert await data_in(node, "b") == ["3"]
    assert table.there == {}


async def test_a_look_needs_no_bell(autojump_clock: MockClock) -> None:
    """A bell may be missed: looks come at least five times a second."""
    table = Table()
    async with open_test_node(OPTIONS) as node, leading(node, table):
        await trio.sleep(5)
        table.commit(table.new("a"), ring=False)
        await trio.sleep(0.25)
        assert await data_in(node, "a") == ["1"]


async def test_the_bell_is_heard_at_once(autojump_clock: MockClock) -> None:
    """Without waiting for the next look."""
    table = Table()
    async with open_test_node(OPTIONS) as node, leading(node, table):
        await trio.sleep(5.11)
        table.commit(table.new("a"))
        await trio.sleep(0.001)
        assert await data_in(node, "a") == ["1"]


async def test_a_late_commit_is_found(autojump_clock: MockClock) -> None:
    """A row with a lower number that becomes visible behind others."""
    table = Table()
    late, early = table.new("a"), table.new("a")
    async with open_test_node(OPTIONS) as node, leading(node, table):
        table.commit(early)
        await trio.sleep(1)
        table.commit(late)
        await trio.sleep(1)
        assert await data_in(node, "a") == ["2", "1"]


@pytest.mark.parametrize(
    ("channel", "more", "why"),
    [
        ("unknown:a", {}, "there is no namespace 'unknown'"),
        ("a", {"data": None, "size": 2_000}, "2000 bytes are more than body_limit allows (1000)"),
        ("", {}, "channel"),
        ("a" * 300, {}, "255"),
        ("bytes:a", {}, "the channel carries bytes"),
        ("a", {"tags": b'{"n": 1}'}, "tags: must be an object of texts"),
        ("a", {"tags": b"[]"}, "tags: must be an object of texts"),
        ("a", {"version": b"NaN"}, "version: must be a whole number"),
        ("a", {"version": b"-1"}, "version: must be a whole number"),
        ("a", {"version": b"18446744073709551616"}, "version: must be a whole number"),
        ("a", {"key": "k" * 300}, "idempotency_key"),
    ],
)
async def test_what_can_never_be_published_is_put_aside(
    channel: str, more: dict[str, object], why: str, autojump_clock: MockClock
) -> None:
    """With its reason, logged and counted; those before and behind it are published."""
    table, counts = Table(), Counts()
    before, wrong, behind = table.new("a"), table.new(channel, data="0"), table.new("a")
    table.commit(before, msgspec.structs.replace(wrong, **more), behind)
    async with open_test_node(OPTIONS) as node:
        async with leading(node, table, counts):
            await trio.sleep(1)
        assert await data_in(node, "a") == ["1", "3"]
        assert sum(node.refusals.counts.values()) == 1
    assert list(table.refused) == [2]
    assert why in table.refused[2]
    assert "\n" not in table.refused[2]
    assert table.there == {}
    assert counts == Counts(moved=2, refused=1)


async def test_what_is_put_aside_is_told_in_few_words(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """However long the names are that somebody has made up."""
    caplog.set_level("INFO", "repeater.connections")
    table = Table()
    long = "x" * 900_000
    table.commit(
        table.new(long), table.new(f"{long}:a"), table.new("a", tags=b'{"%b": 1}' % long.encode())
    )
    async with open_test_node(OPTIONS) as node, leading(node, table):
        await trio.sleep(1)
    assert len(table.refused) == 3
    assert max(map(len, table.refused.values())) <= 1_000
    assert max(map(len, caplog.messages)) < 3_000


async def test_a_channel_that_fails_holds_up_no_other(autojump_clock: MockClock) -> None:
    """Its rows wait, in their order; those of others go on. Then all comes, once."""
    table = Table()
    failing = True
    broker = FaultyBroker(lambda one: "failed" if failing and one.channel == "a" else "taken")
    rows = [table.new(channel) for channel in "abab"]
    async with open_test_node(OPTIONS, broker=broker) as node, leading(node, table):
        table.commit(*rows)
        await trio.sleep(3)
        assert await data_in(node, "a") == []
        assert await data_in(node, "b") == ["2", "4"]
        assert list(table.there) == [1, 3]
        failing = False
        await trio.sleep(3)
        assert await data_in(node, "a") == ["1", "3"]
    assert table.there == {}


async def test_a_failing_channel_is_asked_less_and_less(autojump_clock: MockClock) -> None:
    """After 0.1 s, 0.2 s, and so on to 2 s; a success begins anew."""
    table = Table()
    broker = FaultyBroker(lambda _: "failed")
    async with open_test_node(OPTIONS, broker=broker) as node, leading(node, table):
        table.commit(table.new("a"))
        await trio.sleep(1.6)  # 0.1 + 0.2 + 0.4 + 0.8
        assert len(broker.sent) == 5
        await trio.sleep(20.5)
        assert len(broker.sent) in (15, 16)
        assert node.broker_errors["publish"] == len(broker.sent)


async def test_an_answer_that_is_lost_publishes_nothing_twice(autojump_clock: MockClock) -> None:
    """The engine knows the row by its name, however often it is sent."""
    table, fates = Table(), iter(["unknown", "unknown", "taken"])
    broker = FaultyBroker(lambda _: next(fates))  # type: ignore[arg-type]
    async with open_test_node(OPTIONS, broker=broker) as node, leading(node, table):
        table.commit(table.new("a"))
        await trio.sleep(5)
        assert broker.sent == [("a", "1")] * 3
        assert await data_in(node, "a") == ["1"]
    assert table.there == {}


async def test_an_outage_may_be_longer_than_keys_are_kept(autojump_clock: MockClock) -> None:
    """The engine took the row and could not say so, for longer than `idempotency_ttl`."""
    table, away = Table(), True
    broker = FaultyBroker(lambda _: "unknown" if away else "taken")
    async with open_test_node(OPTIONS, broker=broker) as node, leading(node, table):
        table.commit(table.new("a", key="k"))
        await trio.sleep(2 * node.options.idempotency_ttl)
        assert list(table.there) == [1]
        away = False
        await trio.sleep(3)
        assert await data_in(node, "a") == ["1"]
    assert table.there == {}


async def test_a_failure_does_not_turn_the_order_round(autojump_clock: MockClock) -> None:
    """Rows behind one that failed were sent already, and fail with it."""
    table, fates = Table(), iter(["taken", "failed"])
    broker = FaultyBroker(lambda _: next(fates, "taken"))  # type: ignore[arg-type]
    async with open_test_node(OPTIONS, broker=broker) as node, leading(node, table):
        table.commit(*(table.new("a") for _ in range(4)))
        await trio.sleep(0.01)
        assert await data_in(node, "a") == ["1"]
        await trio.sleep(1)
        assert await data_in(node, "a") == ["1", "2", "3", "4"]


async def test_without_room_nothing_is_lost(autojump_clock: MockClock) -> None:
    """The row is sent when there is room again."""
    table, fates = Table(), iter(["full", "full"])
    broker = FaultyBroker(lambda _: next(fates, "taken"))  # type: ignore[arg-type]
    async with open_test_node(OPTIONS, broker=broker) as node, leading(node, table):
        table.commit(table.new("a"), table.new("b"))
        await trio.sleep(1)
        assert await data_in(node, "a") == ["1"]
        assert await data_in(node, "b") == ["2"]


async def test_rows_under_way_are_bounded(autojump_clock: MockClock) -> None:
    """By their number; the others wait in the table, and the session is not silent meanwhile."""
    table, failing = Table(), True
    broker = FaultyBroker(lambda _: "failed" if failing else "taken")
    async with open_test_node(OPTIONS, broker=broker) as node, trio.open_nursery() as nursery:
        lead = lead_of(node, table.session())
        nursery.start_soon(lead.run)
        table.commit(*(table.new(f"c{number % 7}") for number in range(2 * ROWS + 500)))
        await trio.sleep(1)
        assert lead.under_way == ROWS
        table.asked.clear()
        await trio.sleep(3)
        assert table.asked["take"] == 0
        assert table.asked["something"] >= 10
        failing = False
        await trio.sleep(60)
        assert len(await data_in(node, "c0")) == len(range(0, 2 * ROWS + 500, 7))
        nursery.cancel_scope.cancel()
    assert table.there == {}


async def test_bytes_under_way_are_bounded(autojump_clock: MockClock) -> None:
    """One row more may come than fit."""
    table = Table()
    broker = FaultyBroker(lambda _: "failed")
    large = SIZE // 4 + 1
    async with open_test_node(OPTIONS, broker=broker) as node, leading(node, table):
        rows = [msgspec.structs.replace(table.new(f"c{n}"), size=large) for n in range(10)]
        table.commit(*rows)
        await trio.sleep(0.05)
        assert len(broker.sent) == 4


async def test_a_lost_session_leaves_all_to_the_next_lead(autojump_clock: MockClock) -> None:
    """Rows that were published and not removed are sent again, and answered by the engine alone."""
    table = Table()
    async with open_test_node(OPTIONS, broker=FaultyBroker()) as node:
        async with leading(node, table) as session:
            table.commit(table.new("a"), table.new("b"))
            await trio.sleep(0.01)  # published, and not removed yet
            assert await known(node) == ["1-0", "2-0"]
            session.lose()
            await trio.sleep(1)
        assert list(table.there) == [1, 2]
        async with leading(node, table):
            await trio.sleep(1)
        assert table.there == {}
        assert await data_in(node, "a") == ["1"]
        assert await data_in(node, "b") == ["2"]
        assert await known(node) == []


async def test_names_of_rows_that_are_gone_are_forgotten(autojump_clock: MockClock) -> None:
    """The last lead removed rows and ended before the engine was told."""
    table = Table()
    async with open_test_node(OPTIONS, broker=FaultyBroker()) as node:
        async with leading(node, table) as session:
            session.when_done = session.lose
            table.commit(table.new("a"))
            await trio.sleep(1)
        assert table.there == {}
        assert await known(node) == ["1-0"]
        async with leading(node, table):
            await trio.sleep(0.1)
            assert await known(node) == []


async def test_who_was_deposed_and_has_the_lock_takes_a_higher_term(
    autojump_clock: MockClock,
) -> None:
    """A failover of the database may take the last terms back; the engine knows them."""
    table = Table()
    async with open_test_node(OPTIONS) as node:
        row = SourceRow(SOURCE, 1_000, "other")
        node.broker.submit(Publication("z", b"0"), ChannelOptions(), row=row)
        async with leading(node, table):
            table.commit(table.new("a"))
            await trio.sleep(1)
        assert table.term == 1_001
        assert await data_in(node, "a") == ["1"]


async def test_an_engine_that_is_away_leaves_the_lead_to_others(autojump_clock: MockClock) -> None:
    """Another node may have a better way to it. Not for a failure of 5 s, nor of one channel."""
    table = Table()
    broker = FaultyBroker(lambda _: "down")
    outage = ""
    broker.outage = lambda: outage  # type: ignore[method-assign]
    async with open_test_node(OPTIONS, broker=broker) as node:
        async with trio.open_nursery() as nursery:
            lead = lead_of(node, table.session())
            failures: list[BaseException] = []

            async def run() -> None:
                try:
                    await lead.run()
                except* BrokerError as group:
                    failures.append(group)

            nursery.start_soon(run)
            table.commit(table.new("a"))
            await trio.sleep(20)
            assert failures == []  # The engine as a whole is there.
            outage = "away"
            await trio.sleep(1)
        assert len(failures) == 1
    assert list(table.there) == [1]


async def test_the_lead_ends_with_the_node(autojump_clock: MockClock) -> None:
    """What is under way is removed first, so that a restart with a new memory repeats nothing."""
    table, lead = Table(), None
    async with trio.open_nursery() as nursery, open_test_node(OPTIONS) as node:
        lead = lead_of(node, table.session())
        nursery.start_soon(lead.run)
        table.commit(*(table.new("a") for _ in range(100)))
        await trio.sleep(0.01)
        assert lead.under_way == 100
    assert table.there == {}


async def test_all_is_looked_at_again_every_ten_seconds(autojump_clock: MockClock) -> None:
    """A row that a look has missed is published all the same, and counted."""
    table, counts = Table(), Counts()
    async with open_test_node(OPTIONS) as node, leading(node, table, counts):
        table.commit(table.new("a"))
        await trio.sleep(1)
        missed = table.new("a", missed=True)
        table.there[missed.id] = missed
        table.committed.insert(0, missed)  # before what the last look has seen
        await trio.sleep(8)
        assert await data_in(node, "a") == ["1"]
        await trio.sleep(2)
        assert await data_in(node, "a") == ["1", "2"]
    assert counts == Counts(moved=2, missed=1)


async def test_looks_at_all_take_a_small_part_of_the_time(autojump_clock: MockClock) -> None:
    """A snapshot that somebody holds keeps dead rows, and such a look visits them all."""
    table = Table()
    async with open_test_node(OPTIONS) as node, leading(node, table) as session:
        session.slow = 3.0
        await trio.sleep(600)
    assert table.asked["again"] in (9, 10)
