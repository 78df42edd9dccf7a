"""The broker of a worker: its supervisor's, over the link.

Publications are numbered and kept by the supervisor's broker, and its events come down in the order
in which that broker handed them on: those of a channel from the answer to `hold` on. A publish may
be answered before its event comes, or after. What a worker publishes was checked by its node, so
the supervisor parses no data again.

Publishers wait for their own worker's intake, too: the link could bring no more than it has room
for.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from repeater.brokers.receipts import Receipt
from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.publication import weight_of
from repeater.workers.down import Done
from repeater.workers.up import (
    Announce,
    ForgetRows,
    Hold,
    KnownRows,
    Mark,
    ReadHistory,
    Release,
    RemoveHistory,
    Submit,
    Taken,
)
from repeater.workers.values import (
    MarkRow,
    PublicationRow,
    event_of,
    info_row,
    publication_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repeater.brokers.contract import BrokerStatistics, EventSink, Outcome, Page
    from repeater.brokers.receipts import Answer
    from repeater.brokers.source_rows import SourceRow
    from repeater.options import ChannelOptions
    from repeater.publication import Announcement, Publication, StreamPosition
    from repeater.workers.calls import Calls
    from repeater.workers.values import EventRow

_log = get_logger("workers")

_TOLD: Final = 131_072  # weight of events taken after which the supervisor is told at once


class WorkerBroker:
    """Implements `Broker` over the link. Made by `open_worker_link`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._intake: EventSink | None = None
        self._running = trio.Event()
        self._holds: dict[str, Receipt[None]] = {}
        self._wished: dict[str, None] = {}  # to be held when the supervisor is back
        # Events that the intake has no room for; bounded by the backlog's window.
        self._late: deque[EventRow] = deque()
        self._came = trio.lowlevel.ParkingLot()
        self._taken = 0  # weight that the supervisor was not told of yet

    async def run(self, intake: EventSink) -> None:
        """Hand the events that come down to `intake`, until cancelled."""
        self._intake = intake
        self._running.set()
        try:
            while True:
                while not self._late:
                    await self._came.park()
                await intake.wait_room()
                late, self._late = self._late, deque()
                self._hand_on(late)
        except trio.ClosedResourceError:
            self._drop_events()  # The node is shutting down, and hands nothing on any more.
            await trio.sleep_forever()
        finally:
            self._drop_events()
            self._calls.window.close()
            self._calls.open.fail_brokers(BrokerError("the broker has ended"))

    async def finish(self) -> None:
        """Take nothing more, and wait until the supervisor has answered what was taken.

        Then wait for the events that the supervisor's broker has handed on until now.
        """
        self._calls.window.close()
        self._running.set()
        await self._calls.window.wait_empty()
        with suppress(BrokerError):  # The supervisor is gone, and nothing more will come.
            await self._calls.ask(Mark, weight=0).wait()

    def _drop_events(self) -> None:
        """Take events from now on, and those that wait, without handing them on."""
        self._intake = None
        late, self._late = self._late, deque()
        self._hand_on(late)

    def receive(self, events: Sequence[EventRow]) -> None:
        """Hand on events that came down, behind those that wait for the intake."""
        if self._late:
            self._late.extend(events)
        else:
            self._hand_on(events)

    def _hand_on(self, events: Sequence[EventRow]) -> None:
        """Put events into the intake, as many as there is room for; the others wait."""
        intake, weight, number = self._intake, 0, 0
        for number, row in enumerate(events, 1):
            if isinstance(row, MarkRow):
                self._calls.open.answer(Done(row.serial))
            elif intake is not None:
                # By far the most are publications.
                event = publication_of(row) if type(row) is PublicationRow else event_of(row)
                try:
                    intake.put_nowait(event, row.weight)
                except trio.WouldBlock:
                    number -= 1
                    break
                except trio.ClosedResourceError:
                    intake = None  # Nobody wants events any more.
            weight += row.weight
        if number < len(events):
            self._late.extend(list(events)[number:])
            self._came.unpark_all()
        self._taken += weight
        if self._taken >= _TOLD:
            self.tell_taken()

    def tell_taken(self) -> None:
        """Tell the supervisor how much the intake took."""
        if self._taken:
            self._calls.tell(Taken(self._taken))
            self._taken = 0

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Receipt[Outcome]:
        """Have the supervisor's broker publish; see `Broker.submit`."""
        self._check_room()
        calls, info = self._calls, publication.info
        serial, receipt = calls.open.add(weight_of(publication))
        calls.tell(
            Submit(
                serial,
                publication.channel,
                bytes(publication.data),
                options.history_size,
                options.history_ttl,
                options.history_meta_ttl,
                idempotency_key,
                skip_history,
                publication.tags,
                None if info is None else info_row(info),
                publication.delta,
                publication.version,
                publication.version_epoch,
                publication.binary,
                row,
            )
        )
        return receipt

    def _check_room(self) -> None:
        if self._intake is None:
            raise trio.WouldBlock
        self._calls.check()
        self._calls.window.check()
        self._intake.check_room()

    def known_rows(self, source: str) -> Receipt[Sequence[str]]:
        """The rows that the supervisor's broker remembers, behind what was submitted before."""
        return self._calls.ask(KnownRows, source, weight=0)

    def forget_rows(self, source: str, names: Sequence[str]) -> Receipt[None]:
        """Have rows forgotten, behind what was submitted before."""
        return self._calls.ask(ForgetRows, source, list(names), weight=0)

    async def wait_room(self) -> None:
        """Wait until a call fits into the window, and an event into this worker's intake."""
        if self._intake is None:
            await self._running.wait()
        self._calls.check()
        await self._calls.window.wait()
        if self._intake is None:
            raise trio.ClosedResourceError
        await self._intake.wait_room()

    def announce(self, announcement: Announcement) -> None:
        """Have the supervisor's broker announce; a failure is logged, as nobody waits for it."""
        weight = weight_of(announcement)
        self._check_room()
        row, joined = info_row(announcement.info), announcement.joined
        receipt = self._calls.ask(Announce, announcement.channel, row, joined, weight=weight)
        receipt.when_settled(_log_failure)

    def hold(self, channel: str) -> Answer[None]:
        """Ask for a channel's events; asked once for all that hear it."""
        held = self._holds.get(channel)
        if held is None:
            self._wished[channel] = None
            held = self._holds[channel] = self._calls.ask(Hold, channel, weight=0)
            del self._wished[channel]
            held.when_settled(partial(self._held, channel, held))
        return None if held.settled else held

    def _held(self, channel: str, receipt: Receipt[None], answer: object) -> None:
        if isinstance(answer, Exception) and self._holds.get(channel) is receipt:
            del self._holds[channel]  # The next one asks again, or the next beat.
            self._wished[channel] = None

    def hold_again(self) -> None:
        """Ask again for channels that could not be held. Called with each beat of this worker."""
        with suppress(BrokerError):  # The supervisor is still silent.
            for channel in tuple(self._wished):
                self.hold(channel)

    def release(self, channel: str) -> None:
        """Tell the supervisor that no listener is left here."""
        self._wished.pop(channel, None)
        if self._holds.pop(channel, None) is not None:
            self._calls.tell(Release(channel))

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Receipt[Page]:
        """Ask for publications and the top; see `Broker.history`."""
        offset, epoch = (-1, "") if since is None else (since.offset, since.epoch)
        return self._calls.ask(
            ReadHistory,
            channel,
            options.history_size,
            options.history_ttl,
            options.history_meta_ttl,
            offset,
            epoch,
            limit,
            reverse,
            weight=0,
        )

    def remove_history(self, channel: str) -> Receipt[None]:
        """Have a channel's publications forgotten, behind what was submitted before."""
        return self._calls.ask(RemoveHistory, channel, weight=0)

    def outage(self) -> str:
        """Why the supervisor or its broker is not available now; empty if it is."""
        return self._calls.outage()

    def statistics(self) -> BrokerStatistics:
        """What the supervisor keeps: the same on all of its workers, at most a second old."""
        return self._calls.told.broker


def _log_failure(answer: object) -> None:
    if isinstance(answer, Exception):
        _log.warning("a join or leave was not announced", reason=str(answer))
