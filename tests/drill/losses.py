"""Losses of power at moments of a recording, and what a broker must have that starts after one."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final
from unittest import mock

import trio

from repeater.brokers.receipts import Receipt
from repeater.brokers.sqlite import opening
from repeater.brokers.sqlite.broker import SQLiteBroker
from repeater.brokers.sqlite.journal import Durability
from repeater.fanout.intake import Intake
from repeater.json_text import json_text
from repeater.options import ChannelOptions
from repeater.publication import Publication, StreamPosition
from tests.drill.disk import FATES, Disk, Fate, Step
from tests.drill.history_file import check_once, read_history
from tests.drill.ledger import BrokenPromise
from tests.drill.offsets import Offsets, Promise, Stream
from tests.drill.recorder import FILES, WRITE

SIZE: Final = 500
"""Publications that a channel keeps: few, so that the file is small and rows go all the time."""
_OPTIONS: Final = ChannelOptions(history_size=SIZE, history_ttl=3_600)
_ROOM: Final = 8_192  # events: no fan-out takes them
_DATABASE: Final = FILES.index("history.sqlite3")


@dataclass(frozen=True)
class Loss:
    """A moment at which the power goes, and how the disk takes it."""

    moment: int
    fate: Fate
    seed: int


def some_losses(recorded: Sequence[Step], loaded: int, count: int, rng: Random) -> list[Loss]:
    """Moments of a recording in their order, the last of them under load.

    The first of several is while the server starts. Of the others, half are while the WAL is taken
    over, as far as it is.

    Args:
        recorded: The recording.
        loaded: The moment of the first promise; what came before took long on a busy machine.
        count: How many losses; at least one.
        rng: Chance.
    """
    begin, end = recorded[0].moment, max(loaded, recorded[-1].moment)
    moved = [
        step.moment
        for step in recorded
        if step.moment >= loaded and (step.file, step.operation) == (_DATABASE, WRITE)
    ]
    starting = [rng.uniform(begin, loaded)] if count > 1 else []
    chosen = [
        rng.choice(moved) if moved and rng.random() < 0.5 else rng.uniform(loaded, end)
        for _ in range(count - len(starting))
    ]
    fate = rng.randrange(len(FATES))
    return [
        Loss(int(moment), FATES[(fate + number) % len(FATES)], rng.getrandbits(32))
        for number, moment in enumerate(starting + sorted(chosen))
    ]


def left_by(
    before: Mapping[str, bytes], recorded: Sequence[Step], losses: Sequence[Loss]
) -> Iterator[Mapping[str, bytes]]:
    """The files that each of these losses leaves, one loss after the other.

    Args:
        before: The files at the beginning of the recording.
        recorded: The recording.
        losses: In the order of their moments.
    """
    disk, at = Disk(before), 0
    for loss in losses:
        while at < len(recorded) and recorded[at].moment <= loss.moment:
            disk.take(recorded[at])
            at += 1
        yield disk.after_loss(Random(loss.seed), loss.fate)


def lay(files: Mapping[str, bytes], folder: Path) -> None:
    """Put these files into a folder in place of those that are there."""
    folder.mkdir(exist_ok=True, mode=0o700)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)


class Witness:
    """What had been promised at any moment of a recording."""

    def __init__(self, offsets: Offsets) -> None:
        self._offsets = offsets
        self._promised = offsets.promised()
        self._moments = [one.moment for one in self._promised]

    def tops(self, moment: int) -> Mapping[Stream, Promise]:
        """The furthest promise for each stream up to then."""
        found = dict[Stream, Promise]()
        for one in self._promised[: bisect.bisect_right(self._moments, moment)]:
            if one.stream not in found or one.offset > found[one.stream].offset:
                found[one.stream] = one
        return found

    async def check(
        self, folder: Path, loss: Loss, durability: Durability, boot: Path
    ) -> Counter[str]:
        """Start a broker on what a loss has left, and compare.

        Raises:
            BrokenPromise: something that was promised is neither there nor told as missing.
        """
        counts = Counter(losses=1)
        with mock.patch.object(opening, "_BOOT_ID", boot):
            async with (
                opening.open_sqlite_broker(folder, durability=durability) as broker,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(broker.run, Intake(_ROOM, _ROOM << 10, _ROOM << 10))
                for promise in self.tops(loss.moment).values():
                    counts += await self._check_stream(broker, promise, durability)
                nursery.cancel_scope.cancel()
        check_once(read_history(folder / FILES[_DATABASE]))
        return counts

    async def _check_stream(
        self, broker: SQLiteBroker, promise: Promise, durability: str
    ) -> Counter[str]:
        (channel, epoch), top = promise.stream, promise.offset
        since = StreamPosition(top, epoch)
        found, at = broker.history(channel, _OPTIONS)
        if at.epoch != epoch and durability == "process":
            await self._check_next(broker, channel, at)
            return Counter(told=1)
        if at.epoch != epoch:
            raise BrokenPromise(f"{channel} had the epoch {epoch}, and has {at.epoch}")
        if at.offset < top:
            raise BrokenPromise(f"{channel} has {at.offset} publications, {top} were promised")
        last = [one.offset for one in found[-SIZE:]]
        if last != list(range(max(0, at.offset - SIZE) + 1, at.offset + 1)):
            raise BrokenPromise(f"{channel} is at {at.offset}, and has the offsets {last}")
        known = self._offsets.numbers(promise.stream)
        for one in found:
            expected = known.get(one.offset)
            if expected is not None and f'"n":{expected},' not in one.data.decode():
                raise BrokenPromise(f"{channel} has {one.data!r} at {one.offset}, not {expected}")
        recovered, _ = broker.history(channel, _OPTIONS, since=since)
        if [one.offset for one in recovered] != list(range(top + 1, at.offset + 1)):
            raise BrokenPromise(f"{channel} does not go on behind {since}")
        await self._check_next(broker, channel, at)
        return Counter(kept=1)

    async def _check_next(self, broker: SQLiteBroker, channel: str, at: StreamPosition) -> None:
        """The next publication has the next offset."""
        await broker.wait_room()
        receipt = broker.submit(Publication(channel, json_text(b'{"n":0}')), _OPTIONS)
        assert isinstance(receipt, Receipt)
        if (outcome := await receipt.wait()) != StreamPosition(at.offset + 1, at.epoch):
            raise BrokenPromise(f"{channel} was at {at}, and the next is {outcome}")
