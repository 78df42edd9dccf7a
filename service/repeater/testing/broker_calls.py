"""The rules of a broker's calls: their order, their receipts, and the holding of channels."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import trio

from repeater.brokers.receipts import Receipt, settled
from repeater.publication import Announcement, ClientInfo, Publication, StreamPosition
from repeater.testing.broker_bench import (
    LASTING,
    Bench,
    OpenBroker,
    data_of,
    offsets_of,
    running,
)
from repeater.testing.rules import expect

_MANY: Final = 1_000
_SOME: Final = 50
_KEEPING_ALL: Final = msgspec.structs.replace(LASTING, history_size=_MANY)


async def many_submissions(open_broker: OpenBroker) -> None:
    """1,000 submissions in a row, none of them awaited, keep their order everywhere."""
    wanted = [b"%d" % number for number in range(_MANY)]
    async with running(open_broker, room=2 * _MANY, options=_KEEPING_ALL) as bench:
        await bench.hold()
        answers = [await bench.submit(Publication(bench.channel, one)) for one in wanted]
        positions = [await settled(one) for one in answers]
        expect("offsets", [one and one.offset for one in positions], [*range(1, _MANY + 1)])
        expect("what is handed on", data_of(await bench.handed_on(_MANY)), wanted)
        expect("what is kept", data_of((await bench.history())[0]), wanted)


async def receipts_settle_in_order(open_broker: OpenBroker) -> None:
    """A receipt of a channel is settled after all the earlier receipts of this channel."""
    async with running(open_broker, room=_SOME, options=_KEEPING_ALL) as bench:
        answers = [await bench.submit(Publication(bench.channel, b"1")) for _ in range(_SOME)]

        async def look(number: int) -> None:
            await settled(answers[number])
            before = [one.settled for one in answers[:number] if isinstance(one, Receipt)]
            expect(f"the receipts before number {number} are settled", all(before), True)

        async with trio.open_nursery() as nursery:  # Its block ends when all have looked.
            for number in range(_SOME):
                nursery.start_soon(look, number)
        history = bench.broker.history(bench.channel, bench.options, limit=0)
        expect("the top", (await settled(history))[1], await settled(answers[-1]))


async def a_cancelled_wait(open_broker: OpenBroker) -> None:
    """Who stops waiting for a receipt has published all the same; the receipt still settles."""
    async with running(open_broker) as bench:
        await bench.hold()
        answer = await bench.submit(Publication(bench.channel, b"1"))
        with trio.CancelScope() as scope:
            scope.cancel()
            await settled(answer)
        expect("what is handed on", data_of(await bench.handed_on(1)), [b"1"])
        found, top = await bench.history()
        expect("what is kept", data_of(found), [b"1"])
        expect("the answer in the end", await settled(answer), top)


async def held_before_history(open_broker: OpenBroker) -> None:
    """With a history that is read after `hold` is answered, no publication is missed."""
    async with running(open_broker, room=_MANY, options=_KEEPING_ALL) as bench:
        await _submit_some(bench)
        held = bench.broker.hold(bench.channel)
        await _submit_some(bench)
        await settled(held)
        await _submit_some(bench)
        page = bench.broker.history(bench.channel, bench.options)
        await _submit_some(bench)
        found, top = await settled(page)
        known = set(offsets_of(found))
        expect("offsets in history, up to the top", sorted(known), [*range(1, top.offset + 1)])
        while 4 * _SOME not in known:
            known.update(offsets_of(await bench.handed_on(1)))
        expect("offsets known", sorted(known), [*range(1, 4 * _SOME + 1)])


async def _submit_some(bench: Bench) -> None:
    for _ in range(_SOME):
        await bench.submit(Publication(bench.channel, b"1"))


async def holding_twice(open_broker: OpenBroker) -> None:
    """To hold or release twice is to do it once, also where nothing is held."""
    async with running(open_broker) as bench:
        bench.broker.release(bench.channel)
        for _ in range(2):
            await settled(bench.broker.hold(bench.channel))
        await bench.publish(b"1")
        expect("what is handed on", data_of(await bench.handed_on(1)), [b"1"])
        for _ in range(2):
            bench.broker.release(bench.channel)
        await settled(bench.broker.hold(bench.channel))
        await bench.publish(b"2")
        await bench.publish(b"3")
        expect("what is handed on then", data_of(await bench.handed_on(2)), [b"2", b"3"])


async def the_largest_version(open_broker: OpenBroker) -> None:
    """A version may be any unsigned number of 64 bits, and is compared exactly."""
    most = 2**64 - 1
    async with running(open_broker) as bench:
        for version, offset in ((most - 1, 1), (most, 2), (most, 2), (most - 1, 2)):
            position = await bench.send(Publication(bench.channel, b"1", version=version))
            expect(f"the offset of version {version}", position and position.offset, offset)
        found, top = await bench.history()
        expect("versions that are kept", [one.version for one in found], [most - 1, most])
        expect("the top", top, StreamPosition(2, top.epoch))


async def the_end_settles_all(open_broker: OpenBroker) -> None:
    """When the broker ends, every receipt is settled: nobody waits for ever."""
    async with running(open_broker, room=_SOME, options=_KEEPING_ALL) as bench:
        answers = [await bench.submit(Publication(bench.channel, b"1")) for _ in range(_SOME)]
        history = bench.broker.history(bench.channel, bench.options)
        held = bench.broker.hold(bench.channel)
    receipts = [one for one in (*answers, history, held) if isinstance(one, Receipt)]
    expect("all are settled", [one.settled for one in receipts], [True] * len(receipts))


async def a_finished_broker(open_broker: OpenBroker) -> None:
    """What was taken is answered and handed on; nothing more is taken; history can be read."""
    async with running(open_broker, room=2 * _SOME, options=_KEEPING_ALL) as bench:
        await bench.hold()
        answers = [await bench.submit(Publication(bench.channel, b"1")) for _ in range(_SOME)]
        await bench.broker.finish()
        expect(
            "all are settled",
            [isinstance(one, Receipt) and not one.settled for one in answers],
            [False] * _SOME,
        )
        offsets = [one and one.offset for one in [await settled(one) for one in answers]]
        wanted = [*range(1, _SOME + 1)]
        expect("offsets", offsets, wanted)
        expect("what is handed on", offsets_of(await bench.handed_on(_SOME)), wanted)
        joined = Announcement(bench.channel, ClientInfo("ann", "1"), joined=True)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: bench.submit(Publication(bench.channel, b"2")),
            lambda: bench.announce(joined),
            bench.broker.wait_room,
        ]
        for call in calls:
            try:
                await call()
            except trio.ClosedResourceError:
                continue
            raise AssertionError("a finished broker took something")
        found, top = await bench.history()
        expect("what is kept", (len(found), top.offset), (_SOME, _SOME))
        await bench.broker.finish()


CALL_RULES: Final = (
    many_submissions,
    receipts_settle_in_order,
    a_cancelled_wait,
    held_before_history,
    holding_twice,
    the_largest_version,
    the_end_settles_all,
)
