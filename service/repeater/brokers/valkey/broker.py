"""The broker of several nodes: numbers and history in Valkey or Redis, events by its bus.

A script numbers, keeps and hands on, so all nodes agree on the order of a channel. Each node hears
the channels that it holds, its own publications included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from repeater.brokers.contract import BrokerStatistics, EngineStatistics
from repeater.brokers.receipts import Receipt
from repeater.brokers.source_rows import SourceRow
from repeater.brokers.valkey.bus import Bus
from repeater.brokers.valkey.envelope import Uids, sealed
from repeater.brokers.valkey.lanes import Kept, Lanes, Submission
from repeater.brokers.valkey.rows import Rows
from repeater.brokers.valkey.scripts import new_epoch, new_epoch_of_primary
from repeater.brokers.valkey.streams import StreamEngine
from repeater.brokers.window import Window
from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.publication import weight_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from repeater.brokers.contract import EventSink, Outcome, Page
    from repeater.brokers.receipts import Answer
    from repeater.brokers.valkey.streams import Located
    from repeater.options import ChannelOptions
    from repeater.publication import Announcement, Publication, StreamPosition
    from repeater.valkey.pipe import Part
    from repeater.valkey.servers import Servers

_log = get_logger("engine")

_IN_FLIGHT: Final = 8_192
_BYTES: Final = 8_388_608
_ONE_HALF: Final = ("commands: ", "bus: ")  # how an outage begins that is of one half
# Of all partitions together, but one at least of each. One has its script on the way while that of
# the other is carried out; more would make smaller scripts, which cost both sides more.
_LANES: Final = 2
_FIRST_LOOK: Final = 3.0  # seconds after the start in which nobody is told that the engine is down
_LONGEST: Final = 2**52  # milliseconds; the engine counts no further


class ValkeyBroker:
    """Implements `Broker` on the servers of an engine. `run` connects them, and ends them."""

    def __init__(
        self,
        servers: Servers,
        *,
        prefix: str = "repeater",
        idempotency_ttl: float = 300.0,
        strict: bool = False,
        foreign: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Keep everything below a prefix, and the result of a key for so many seconds.

        With `strict` a stream begins anew, at its next use, when its server has another primary.
        `foreign` gives what other parts of the node have found that no node has written: whatever
        is known of the engine is in the broker's statistics.
        """
        self._foreign = foreign
        epochs = new_epoch_of_primary if strict else new_epoch
        self._servers = servers
        self._engine = StreamEngine(servers, prefix, epochs)
        self._bus = Bus(self._engine)
        # Looked up once: each publication calls them.
        self._locate, self._why = self._engine.locate, servers.why
        self._start = _Start(servers)
        servers.add(self._bus)
        servers.add(self._start)
        self._window = Window(_IN_FLIGHT, _BYTES)
        of_each = max(1, _LANES // servers.partitions)
        self._lanes = Lanes(
            servers.partitions, of_each, servers.publish, servers.ask, self._window, epochs
        )
        self._rows = Rows(servers, self._engine, self._lanes)
        self._uids = Uids()
        self._remembered = _milliseconds(idempotency_ttl)
        self._last_options: ChannelOptions | None = None
        self._last_kept: Kept = (0, 0, 0)
        self._intake: EventSink | None = None

    async def run(self, intake: EventSink) -> None:
        """Be connected, and hand what comes by the bus to `intake`, until cancelled."""
        self._intake = intake
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._start.run)
                nursery.start_soon(self._servers.run)
                nursery.start_soon(self._lanes.run)
                nursery.start_soon(self._engine.reads.run)
                nursery.start_soon(self._bus.run, intake)
        finally:
            self._window.close()
            self._start.known.set()

    async def finish(self) -> None:
        """Take nothing more, and wait until what was taken is answered and handed on."""
        self._window.close()
        self._start.known.set()
        await self._window.wait_empty()
        await self._bus.finish()

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Answer[Outcome]:
        """Have a script publish; see `Broker.submit`."""
        located = self._locate(publication.channel)
        self._check_room(located)
        names, envelope = located.names, sealed(publication, self._uids.next())
        keys: tuple[bytes, ...]
        instructions: tuple[Part, ...]
        if options.history_size > 0 and not skip_history:
            kept = self._kept_of(options)
            keys, instructions = (names.meta, names.stream), (b"k", names.bus, envelope)
            if publication.version:
                version = b"%020d" % publication.version
                instructions = (b"v", version, publication.version_epoch, *instructions)
        else:
            kept = None
            what = b"n" if options.history_size <= 0 else b"h"
            keys, instructions = (names.meta,), (what, names.bus, envelope)
        if idempotency_key:
            keys = (self._engine.result_key(located, idempotency_key), *keys)
            instructions = (b"i", self._remembered, *instructions)
        if row is not None:
            keys = (self._engine.rows_key(located.partition, row.source), *keys)
            instructions = (b"t", row.term, row.name, row.after, *instructions)
        receipt: Receipt[Outcome] = Receipt()
        self._lanes.put(
            located.partition,
            publication.channel,
            Submission(keys, instructions, kept, weight_of(publication), receipt.settle),
        )
        return receipt

    def _kept_of(self, options: ChannelOptions) -> Kept:
        """How much is kept, and for how long; mostly asked of the same options as before."""
        if options is not self._last_options:
            self._last_options = options
            self._last_kept = (
                options.history_size,
                _milliseconds(options.history_ttl),
                _milliseconds(options.history_meta_ttl),
            )
        return self._last_kept

    def _check_room(self, located: Located) -> None:
        self._window.check()
        why = self._why(located.partition)
        if self._intake is None or (why and not self._start.known.is_set()):
            raise trio.WouldBlock  # It is not known yet whether the engine is there.
        if why:
            raise BrokerError(why)
        self._intake.check_room()

    def known_rows(self, source: str) -> Receipt[Sequence[str]]:
        """The rows that all partitions remember; see `Broker.known_rows`."""
        return self._rows.known(source)

    def forget_rows(self, source: str, names: Sequence[str]) -> Receipt[None]:
        """Forget rows, behind what was submitted before; see `Broker.forget_rows`."""
        return self._rows.forget(source, names)

    async def wait_room(self) -> None:
        """Wait until a submission fits into the window, and an event into this node's intake."""
        await self._start.known.wait()
        await self._window.wait()
        if self._intake is None:
            raise trio.ClosedResourceError
        await self._intake.wait_room()

    def announce(self, announcement: Announcement) -> None:
        """Hand on a join or leave; a failure is logged, as nobody waits for it."""
        located = self._locate(announcement.channel)
        self._check_room(located)
        envelope = sealed(announcement, self._uids.next())
        self._lanes.put(
            located.partition,
            announcement.channel,
            Submission(
                (located.names.meta,),
                (b"h", located.names.bus, envelope),
                None,
                weight_of(announcement),
                _log_failure,
            ),
        )

    def hold(self, channel: str) -> Answer[None]:
        """Have a channel's events come by the bus; see `Broker.hold`."""
        return self._bus.hold(channel)

    def release(self, channel: str) -> None:
        """Note that no listener is left; the events come for some time more."""
        self._bus.release(channel)

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Receipt[Page]:
        """Read a stream; see `Broker.history`. Equal reads are made once."""
        return self._engine.page(channel, since, limit, reverse)

    def remove_history(self, channel: str) -> Receipt[None]:
        """Forget a channel's publications, behind what was submitted before."""
        located = self._engine.locate(channel)
        why = self._engine.why(located.partition)
        if why:
            raise BrokerError(why)
        names = located.names
        receipt: Receipt[None] = Receipt()

        def tell(outcome: StreamPosition | BrokerError | None) -> None:
            receipt.settle(outcome if isinstance(outcome, BrokerError) else None)

        self._lanes.put(
            located.partition,
            channel,
            Submission((names.meta, names.stream), (b"r",), None, len(channel), tell),
        )
        return receipt

    def outage(self) -> str:
        """Why the engine is not there, and which half of it is not; empty if it is."""
        why = self._servers.outage()
        return why if not why or why.startswith(_ONE_HALF) else f"commands and bus: {why}"

    def statistics(self) -> BrokerStatistics:
        """The connections, and what went through them; nothing is kept here."""
        seen, halves = self._servers.statistics(), self.outage().partition(":")[0]
        bus = self._bus.statistics()
        return BrokerStatistics(
            engine=EngineStatistics(
                seen.primaries,
                seen.up,
                seen.losses,
                down=[half for half in ("commands", "bus") if half in halves],
                waiting=self._window.count,
                scripts=self._lanes.scripts,
                held=bus.held,
                reads=bus.reads,
                forks=bus.forks,
                ruptures=bus.ruptures,
                foreign={
                    "streams": self._lanes.foreign + self._engine.foreign + bus.foreign,
                    **self._foreign(),
                },
            )
        )


class _Start:
    """Says when it is known whether the engine is there. Implements `Listener`."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self.known = trio.Event()

    async def run(self) -> None:
        await trio.sleep(_FIRST_LOOK)
        self.known.set()

    def up(self, partitions: Sequence[int]) -> None:
        if not self._servers.outage():
            self.known.set()

    def down(self, partitions: Sequence[int]) -> None:
        pass  # Whoever submits is told.

    async def wait_room(self) -> None:
        pass  # It takes nothing.


def _milliseconds(seconds: float) -> int:
    return max(1, min(_LONGEST, int(seconds * 1000)))


def _log_failure(outcome: StreamPosition | BrokerError | None) -> None:
    if isinstance(outcome, BrokerError):
        _log.warning("a join or leave was not announced", reason=str(outcome))
