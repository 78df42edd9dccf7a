"""The rules of a broker's history: what it keeps, for how long, and how it is asked for."""

from __future__ import annotations

import random
from typing import Final

import msgspec
import trio

from repeater.brokers.receipts import settled
from repeater.publication import StreamPosition
from repeater.testing.broker_bench import (
    EXPIRING,
    LASTING,
    OpenBroker,
    data_of,
    offsets_of,
    running,
)
from repeater.testing.rules import expect


async def history_since_and_limit(open_broker: OpenBroker) -> None:
    """History is what came after the position, oldest first, at most `limit`, and the top."""
    async with running(open_broker) as bench:
        for number in (b"1", b"2", b"3"):
            top = await bench.numbered(number)
        for since, limit, wanted in (
            (None, None, [b"1", b"2", b"3"]),
            (1, None, [b"2", b"3"]),
            (0, 2, [b"1", b"2"]),
            (None, 0, []),
            (3, None, []),
            (99, None, []),
        ):
            position = None if since is None else StreamPosition(since, top.epoch)
            found, at = await bench.history(position, limit)
            expect(f"since {since}, limit {limit}", data_of(found), wanted)
            expect("the top", at, top)


async def history_reversed(open_broker: OpenBroker) -> None:
    """Reversed, history is newest first: what came before the position, at most `limit`."""
    async with running(open_broker) as bench:
        for number in range(1, 6):
            top = await bench.numbered(b"%d" % number)
        for since, limit, wanted in (
            (None, None, [5, 4, 3]),
            (None, 2, [5, 4]),
            (5, None, [4, 3]),
            (5, 1, [4]),
            (3, None, []),
            (99, None, [5, 4, 3]),
            (0, None, []),
        ):
            position = None if since is None else StreamPosition(since, top.epoch)
            found, at = await bench.history(position, limit, reverse=True)
            expect(f"before {since}, limit {limit}", offsets_of(found), wanted)
            expect("the top", at, top)


async def history_of_another_epoch(open_broker: OpenBroker) -> None:
    """A position of another epoch selects nothing; one of an empty epoch is of any."""
    async with running(open_broker) as bench:
        top = await bench.numbered()
        found, at = await bench.history(StreamPosition(0, "other"))
        expect("publications", list(found), [])
        expect("the top", at, top)
        found, at = await bench.history(StreamPosition(0, ""))
        expect("offsets with an empty epoch", offsets_of(found), [1])


async def history_is_bounded(open_broker: OpenBroker) -> None:
    """Only the last `history_size` publications are kept; offsets go on."""
    async with running(open_broker) as bench:
        for number in range(1, 6):
            await bench.publish(b"%d" % number)
        found, at = await bench.history()
        expect("offsets", offsets_of(found), [3, 4, 5])
        found, _ = await bench.history(StreamPosition(1, at.epoch))
        expect("offsets since 1", offsets_of(found), [3, 4, 5])


async def history_size_follows_the_options(open_broker: OpenBroker) -> None:
    """With the next publication a channel keeps as many as its options say by then."""
    async with running(open_broker) as bench:
        for size, wanted in ((3, [1]), (3, [1, 2]), (1, [3]), (4, [3, 4])):
            bench.options = msgspec.structs.replace(LASTING, history_size=size)
            await bench.publish()
            expect(f"offsets with size {size}", offsets_of((await bench.history())[0]), wanted)


async def history_of_an_unseen_channel(open_broker: OpenBroker) -> None:
    """A channel that nobody published to is at offset 0 of the epoch of its first publication."""
    async with running(open_broker) as bench:
        found, at = await bench.history()
        expect("publications", list(found), [])
        expect("the top's offset", at.offset, 0)
        expect("an epoch is not empty", bool(at.epoch), True)
        expect("bytes of an epoch, at most 32", len(at.epoch.encode()) <= 32, True)
        expect("the first position", await bench.publish(), StreamPosition(1, at.epoch))


async def history_expires(open_broker: OpenBroker) -> None:
    """Publications expire `history_ttl` after the newest of them; offset and epoch stay."""
    ttl, meta_ttl = EXPIRING.history_ttl, EXPIRING.history_meta_ttl
    async with running(open_broker, options=EXPIRING) as bench:
        first = trio.current_time()
        await bench.publish()
        await trio.sleep(2)
        found, _ = await bench.history()
        second = trio.current_time()
        top = await bench.numbered()
        if is_first_kept := _is_before(first + ttl):
            expect("kept after 2 of 3 seconds", offsets_of(found), [1])
        await trio.sleep(2)
        found, _ = await bench.history()
        if is_first_kept and _is_before(second + ttl):
            expect("kept, since the newest is younger", offsets_of(found), [1, 2])
        await trio.sleep(1.5)
        found, at = await bench.history()
        expect("kept after 3.5 seconds", list(found), [])
        following = await bench.publish()
        if _is_before(second + meta_ttl):
            expect("the top", at, top)
            expect("the next position", following, StreamPosition(3, top.epoch))


async def meta_expires(open_broker: OpenBroker) -> None:
    """After `history_meta_ttl` the numbering begins again, in a new epoch."""
    async with running(open_broker, options=EXPIRING) as bench:
        begun = trio.current_time()
        first = await bench.numbered()
        await trio.sleep(6)
        _, top = await bench.history()
        if _is_before(begun + EXPIRING.history_meta_ttl):
            expect("the top after 6 of 8 seconds", top, first)
        await trio.sleep(4)
        second = await bench.numbered()
        expect("the offset", second.offset, 1)
        expect("a new epoch", second.epoch != first.epoch, True)


def _is_before(end: float) -> bool:
    """Whether it is not too late to ask what is kept until then: a busy machine may be held up."""
    return trio.current_time() < end


async def meta_expires_unnoticed(open_broker: OpenBroker) -> None:
    """A position from before a stream is of no use after the stream was forgotten."""
    async with running(open_broker, options=EXPIRING) as bench:
        _, before = await bench.history()
        await bench.publish()
        await trio.sleep(9)
        found, after = await bench.history(before)
        expect("publications", list(found), [])
        expect("the top's offset", after.offset, 0)
        expect("another epoch", after.epoch != before.epoch, True)
        expect("the first position", await bench.publish(), StreamPosition(1, after.epoch))


async def history_is_switched_off(open_broker: OpenBroker) -> None:
    """A stream that missed a publication, because history was off, has another epoch."""
    for published in (0, 2):
        async with running(open_broker) as bench:
            for _ in range(published):
                await bench.publish()
            _, before = await bench.history()
            bench.options = msgspec.structs.replace(LASTING, history_size=0)
            expect("the result without history", await bench.publish(), None)
            bench.options = LASTING
            found, after = await bench.history()
            expect("publications", list(found), [])
            expect("another epoch", after.epoch != before.epoch, True)
            expect("the first position", await bench.publish(), StreamPosition(1, after.epoch))


async def history_is_off_without_publications(open_broker: OpenBroker) -> None:
    """A stream that missed nothing while history was off goes on."""
    async with running(open_broker) as bench:
        top = await bench.numbered()
        bench.options = msgspec.structs.replace(LASTING, history_size=0)
        await bench.publish(channel=f"{bench.channel}:other")
        bench.options = LASTING
        expect("the top", (await bench.history())[1], top)


async def removed_history(open_broker: OpenBroker) -> None:
    """Removed publications are gone, the numbers go on; an unseen channel has none to remove."""
    async with running(open_broker) as bench:
        await settled(bench.broker.remove_history(f"{bench.channel}:unseen"))
        top = await bench.numbered()
        await settled(bench.broker.remove_history(bench.channel))
        found, at = await bench.history()
        expect("publications", list(found), [])
        expect("the top", at, top)
        expect("the next position", await bench.publish(b"2"), StreamPosition(2, top.epoch))
        found, _ = await bench.history(StreamPosition(0, top.epoch))
        expect("offsets since 0", offsets_of(found), [2])


async def any_page(open_broker: OpenBroker) -> None:
    """Whatever is kept and asked for: the right publications in the right order, and the top."""
    chance = random.Random(1)
    async with running(open_broker, room=10_000) as bench:
        published, bench.options = 0, msgspec.structs.replace(LASTING, history_size=1_500)
        for _ in range(200):
            for _ in range(chance.choice((0, 1, 50))):
                await bench.publish()
                published += 1
            if chance.random() < 0.02:
                await settled(bench.broker.remove_history(bench.channel))
                size = chance.choice((5, 1_200))
                bench.options = msgspec.structs.replace(LASTING, history_size=size)
            found, top = await bench.history()
            kept = offsets_of(found)
            expect("all that is kept", kept, [*range(published - len(kept) + 1, published + 1)])
            since, limit = chance.randint(0, published + 2), chance.choice((None, 0, 1, 7, 1_100))
            for reverse in (False, True):
                found, at = await bench.history(StreamPosition(since, top.epoch), limit, reverse)
                wanted = [one for one in kept if (one < since if reverse else one > since)]
                wanted = wanted[::-1] if reverse else wanted
                expect(f"since {since}, {limit=}, {reverse=}", offsets_of(found), wanted[:limit])
                expect("the top", at, top)


HISTORY_RULES: Final = (
    history_since_and_limit,
    history_reversed,
    history_of_another_epoch,
    history_is_bounded,
    history_size_follows_the_options,
    history_of_an_unseen_channel,
    history_is_switched_off,
    history_is_off_without_publications,
    removed_history,
    any_page,
)

EXPIRY_RULES: Final = (history_expires, meta_expires, meta_expires_unnoticed)
"""Rules that wait for some seconds: they can be checked side by side."""
