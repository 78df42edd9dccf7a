"""The conformance suite of `Broker`: `check_broker`, and the rules of publishing.

The rules use channels of their own, so that a broker may keep what it has between them. They wait
for events instead of counting them at once: between a publish and its hand-over there may be a
network. What waits for an expiry takes no real time under an autojump clock, else some seconds.
"""

from __future__ import annotations

from typing import Final

import msgspec
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.errors import open_service_nursery
from repeater.publication import Announcement, ClientInfo, Publication
from repeater.testing.broker_bench import (
    LASTING,
    OpenBroker,
    data_of,
    offsets_of,
    running,
)
from repeater.testing.broker_calls import CALL_RULES, a_finished_broker
from repeater.testing.broker_history import EXPIRY_RULES, HISTORY_RULES
from repeater.testing.broker_rows import ROW_RULES, rows_outlive_keys
from repeater.testing.rules import expect, hold, hold_side_by_side


async def check_broker(open_broker: OpenBroker, *, idempotency_ttl: float) -> None:
    """Check that a broker keeps its contract.

    Args:
        open_broker: Opens a broker for each rule, and closes it at the end of the block.
        idempotency_ttl: Seconds for which the broker remembers an idempotency key. A rule waits
            for that long: a broker that is not on Trio's clock should have a short one here.

    Raises:
        AssertionError: a rule is broken; the text says which.
    """
    await hold(RULES, open_broker)

    async def a_key_is_forgotten(open_broker: OpenBroker) -> None:
        """An idempotency key is forgotten after its time."""
        await a_key_expires(open_broker, idempotency_ttl)

    async def a_row_stays(open_broker: OpenBroker) -> None:
        """A row is remembered until it is forgotten, however long an idempotency key lives."""
        await rows_outlive_keys(open_broker, idempotency_ttl)

    await hold_side_by_side([*EXPIRY_RULES, a_key_is_forgotten, a_row_stays], open_broker)


async def offsets_count_from_one(open_broker: OpenBroker) -> None:
    """Each channel counts 1, 2, 3 within one epoch; position and hand-over agree."""
    async with running(open_broker) as bench:
        positions = [await bench.numbered() for _ in range(3)]
        other = await bench.numbered(channel=f"{bench.channel}:other")
        events = await bench.handed_on(4)
    expect("offsets", [one.offset for one in positions], [1, 2, 3])
    expect("epochs of one channel", len({one.epoch for one in positions}), 1)
    expect("the other channel's offset", other.offset, 1)
    expect("an epoch is not empty", all(one.epoch for one in [*positions, other]), True)
    handed = {
        (one.channel, one.offset, one.epoch) for one in events if isinstance(one, Publication)
    }
    wanted = {(bench.channel, one.offset, one.epoch) for one in positions}
    wanted.add((f"{bench.channel}:other", 1, other.epoch))
    expect("numbers that are handed on", handed, wanted)


async def a_repeated_key(open_broker: OpenBroker) -> None:
    """A repeated idempotency key gets the first result and publishes nothing; per channel."""
    async with running(open_broker) as bench:
        first = await bench.numbered(b"1", key="k")
        expect("the second result", await bench.publish(b"2", key="k"), first)
        other = await bench.numbered(b"3", key="k", channel=f"{bench.channel}:other")
        expect("the key in another channel", other.offset, 1)
        expect("what is handed on", data_of(await bench.handed_on(2)), [b"1", b"3"])
        expect("what is kept", data_of((await bench.history())[0]), [b"1"])


async def a_repeated_key_without_history(open_broker: OpenBroker) -> None:
    """A result that is None is remembered like any other."""
    async with running(open_broker) as bench:
        for data in (b"1", b"2"):
            result = await bench.publish(data, key="k", skip_history=True)
            expect("the result", result, None)
        await bench.publish(b"3")
        expect("what is handed on", data_of(await bench.handed_on(2)), [b"1", b"3"])


async def a_key_expires(open_broker: OpenBroker, idempotency_ttl: float) -> None:
    """An idempotency key is forgotten after its time."""
    async with running(open_broker) as bench:
        await bench.publish(key="k")
        await trio.sleep(idempotency_ttl + 1)
        expect("the offset", (await bench.numbered(key="k")).offset, 2)


async def a_version(open_broker: OpenBroker) -> None:
    """A version that is not newer than the stream's publishes nothing; another epoch is new."""
    async with running(open_broker) as bench:
        for version, epoch, offset in ((2, "", 1), (1, "", 1), (2, "", 1), (3, "", 2), (1, "e", 3)):
            sent = Publication(bench.channel, b"1", version=version, version_epoch=epoch)
            position = await bench.send(sent)
            found = position and position.offset
            expect(f"the offset of version {version} of {epoch!r}", found, offset)
        expect("what is kept", offsets_of((await bench.history())[0]), [1, 2, 3])


async def skipped_history(open_broker: OpenBroker) -> None:
    """A publication that skips history is handed on without a number, and is not kept."""
    async with running(open_broker) as bench:
        await bench.publish(b"1")
        expect("the result", await bench.publish(b"2", skip_history=True), None)
        expect("offsets handed on", offsets_of(await bench.handed_on(2)), [1, 0])
        found, at = await bench.history()
        expect("what is kept", data_of(found), [b"1"])
        expect("the top's offset", at.offset, 1)


async def no_history_at_all(open_broker: OpenBroker) -> None:
    """With a history size of 0 nothing is numbered."""
    options = msgspec.structs.replace(LASTING, history_size=0)
    async with running(open_broker, options=options) as bench:
        expect("the result", await bench.publish(), None)
        expect("offsets handed on", offsets_of(await bench.handed_on(1)), [0])


async def what_travels_is_kept(open_broker: OpenBroker) -> None:
    """Tags, info and the wish for a difference are in history as they were published."""
    async with running(open_broker) as bench:
        info = ClientInfo("ann", "1", msgspec.Raw(b"{}"))
        sent = Publication(bench.channel, b"1", tags={"k": "v"}, info=info, delta=True)
        await bench.send(sent)
        found, top = await bench.history()
        wanted = msgspec.structs.replace(sent, offset=1, epoch=top.epoch, time=found[0].time)
        expect("a time, in Unix milliseconds", wanted.time > 1_700_000_000_000, True)
        expect("history", list(found), [wanted])
        expect("what is handed on", await bench.handed_on(1), [wanted])


async def binary_data(open_broker: OpenBroker) -> None:
    """Data of any bytes, empty data too, stays what it is and keeps its mark, beside JSON."""
    async with running(open_broker) as bench:
        info = ClientInfo("ann", "1", msgspec.Raw(b"{}"))
        for data in (bytes(range(256)), b"", b"1\n"):
            sent = [
                Publication(bench.channel, data, binary=True),
                Publication(bench.channel, data, tags={"k": "v"}, info=info, binary=True),
                Publication(bench.channel, b"1"),
            ]
            for one in sent:
                await bench.send(one)
            handed_on = await bench.handed_on(3)
            found, top = await bench.history()
            wanted = [
                msgspec.structs.replace(one, offset=kept.offset, epoch=top.epoch, time=kept.time)
                for one, kept in zip(sent, found, strict=True)
            ]
            expect("history", list(found), wanted)
            expect("what is handed on", handed_on, wanted)
        expect("without history", await bench.send(sent[0], skip_history=True), None)
        expect("what is handed on of it", await bench.handed_on(1), [sent[0]])


async def an_announcement(open_broker: OpenBroker) -> None:
    """A join is handed on in its turn, and is in no history."""
    async with running(open_broker) as bench:
        joined = Announcement(bench.channel, ClientInfo("ann", "1"), joined=True)
        await bench.publish(b"1")
        await bench.announce(joined)
        await bench.publish(b"2")
        events = await bench.handed_on(3)
        expect("what is handed on", data_of(events), [b"1", b"", b"2"])
        expect("the second event", events[1], joined)
        found, top = await bench.history()
        expect("what is kept", (data_of(found), top.offset), ([b"1", b"2"], 2))


async def a_full_intake(open_broker: OpenBroker) -> None:
    """Without room in the intake events wait, publications and joins, and come in order."""
    async with running(open_broker, room=1) as bench, open_service_nursery() as nursery:
        joined = Announcement(bench.channel, ClientInfo("ann", "1"), joined=True)
        await bench.publish(b"1")
        while not len(bench.intake):  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.01)
        nursery.start_soon(bench.publish, b"2")
        await wait_all_tasks_blocked()
        nursery.start_soon(bench.announce, joined)
        await wait_all_tasks_blocked()
        expect("events in an intake for one", len(bench.intake), 1)
        events = await bench.handed_on(3)
        expect("what is handed on", data_of(events), [b"1", b"2", b""])
        expect("the last event", events[2], joined)


async def a_cancelled_publisher(open_broker: OpenBroker) -> None:
    """Cancelled while it waits for room: no number, no history, no hand-over, no key."""
    async with running(open_broker, room=1) as bench:
        first = await bench.numbered(b"1")
        second = Publication(bench.channel, b"2")
        try:
            bench.broker.submit(second, bench.options, idempotency_key="k")
        except trio.WouldBlock:
            pass
        else:
            return  # It has room of its own; then there is nothing to cancel.
        with trio.move_on_after(0.1):
            await bench.submit(second, key="k")
        found, at = await bench.history()
        expect("history", (data_of(found), at), ([b"1"], first))
        await bench.handed_on(1)
        expect("the key is free", (await bench.numbered(b"3", key="k")).offset, 2)
        expect("what is handed on next", data_of(await bench.handed_on(1)), [b"3"])


async def a_closed_intake(open_broker: OpenBroker) -> None:
    """What a closing node refuses raises ClosedResourceError, and is not in history either."""
    async with running(open_broker) as bench:
        bench.intake.close()
        try:
            await bench.publish()
        except trio.ClosedResourceError:
            pass
        else:
            raise AssertionError("publish did not raise")
        expect("the top's offset", (await bench.history())[1].offset, 0)


async def concurrent_publishers(open_broker: OpenBroker) -> None:
    """However many publish at once, hand-over and history have the same order."""
    options = msgspec.structs.replace(LASTING, history_size=100)
    wanted = list(range(1, 51))
    async with running(open_broker, room=4, options=options) as bench:
        async with open_service_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(bench.publish, b"%d" % number)
            events = await bench.handed_on(50)
        expect("offsets handed on", offsets_of(events), wanted)
        found, _ = await bench.history()
        expect("history", list(found), events)


async def no_outage(open_broker: OpenBroker) -> None:
    """A broker that works says that it does, without waiting."""
    async with running(open_broker) as bench:
        await bench.publish()
        expect("outage", bench.broker.outage(), "")


RULES: Final = (
    *HISTORY_RULES,
    *CALL_RULES,
    offsets_count_from_one,
    a_repeated_key,
    a_repeated_key_without_history,
    a_version,
    skipped_history,
    no_history_at_all,
    what_travels_is_kept,
    binary_data,
    an_announcement,
    a_full_intake,
    a_cancelled_publisher,
    a_closed_intake,
    concurrent_publishers,
    no_outage,
    a_finished_broker,
    *ROW_RULES,
)
