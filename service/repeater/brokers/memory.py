"""The default broker: streams in this process's memory, which end with the process.

Numbering, history and hand-over happen without an await between them, so a channel's order in
history and in fan-out is the same. A restart makes new epochs: from a new epoch a client learns
that numbering began again.
"""

from __future__ import annotations

import heapq
import secrets
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

import msgspec
import trio

from repeater.brokers.contract import EventSink
from repeater.options import ChannelOptions
from repeater.publication import Announcement, Publication, StreamPosition

_SWEEP_INTERVAL: Final = 1.0  # seconds between two looks for what expired
_SWEEP_STREAMS: Final = 1_000  # expired streams handled in one turn of the scheduler
_INDEXED: Final = (
    1_000  # up to so many publications are fetched by index, which is quick at the top
)


class _Stream:
    """One channel's numbers and its last publications."""

    __slots__ = ("epoch", "forgotten_at", "publications", "top", "until", "version")

    def __init__(self, options: ChannelOptions) -> None:
        self.epoch = secrets.token_urlsafe(6)
        self.top = 0
        self.version = ("", 0)
        """`version_epoch` and `version` of the last publication that had a version."""
        self.publications: deque[Publication] = deque(maxlen=options.history_size)
        self.until = 0.0
        """When the publications expire, on Trio's clock."""
        self.forgotten_at = 0.0
        """When epoch and top expire, on Trio's clock."""
        self.touch(options, trio.current_time())

    def touch(self, options: ChannelOptions, now: float) -> None:
        """Count the lifetimes of publications, top and epoch from now: something was published."""
        self.until = now + options.history_ttl
        self.forgotten_at = max(self.until, now + options.history_meta_ttl)

    def append(self, publication: Publication, options: ChannelOptions) -> Publication:
        """Number and keep a publication; returns it with its offset and epoch."""
        now = trio.current_time()
        self.expire(now)
        if self.publications.maxlen != options.history_size:  # the options were reloaded
            self.publications = deque(self.publications, maxlen=options.history_size)
        self.top += 1
        if publication.version:
            self.version = (publication.version_epoch, publication.version)
        numbered = msgspec.structs.replace(publication, offset=self.top, epoch=self.epoch)
        self.publications.append(numbered)
        self.touch(options, now)
        return numbered

    def outdates(self, publication: Publication) -> bool:
        """Whether a publication has a version that is not newer than the stream's."""
        epoch, version = self.version
        return 0 < publication.version <= version and publication.version_epoch == epoch

    def expire(self, now: float) -> None:
        """Forget the publications if they have expired."""
        if now >= self.until:
            self.publications.clear()

    @property
    def position(self) -> StreamPosition:
        return StreamPosition(self.top, self.epoch)

    def after(self, offset: int, limit: int | None) -> Sequence[Publication]:
        """The publications after `offset`, oldest first."""
        kept = self.publications
        start = max(0, offset - self.top + len(kept))
        end = len(kept) if limit is None else min(len(kept), start + limit)
        if end - start <= _INDEXED:
            return tuple(kept[index] for index in range(start, end))
        return tuple(islice(kept, start, end))

    def before(self, offset: int, limit: int | None) -> Sequence[Publication]:
        """The publications before `offset`, newest first."""
        kept: Iterable[Publication] = reversed(self.publications)
        start = max(0, self.top - offset + 1)
        return tuple(islice(kept, start, None if limit is None else start + limit))


class MemoryBroker:
    """Implements `Broker` for one process. Lives inside `open_node`; ended with it."""

    def __init__(self, *, idempotency_ttl: float = 300.0) -> None:
        """Keep an idempotency key's first result for `idempotency_ttl` seconds (section 9.1)."""
        self._idempotency_ttl = idempotency_ttl
        self._intake: EventSink | None = None
        self._running = trio.Event()
        self._streams: dict[str, _Stream] = {}
        # When to look at which stream: one entry per stream, whose time may be too early.
        self._due: list[tuple[float, str]] = []
        # Oldest first, so that expiry looks at the front only.
        self._results: OrderedDict[tuple[str, str], tuple[float, StreamPosition | None]] = (
            OrderedDict()
        )

    async def run(self, intake: EventSink) -> None:
        """Hand events to `intake`, and forget what expired, until cancelled."""
        self._intake = intake
        self._running.set()
        while True:
            await trio.sleep(_SWEEP_INTERVAL)
            await self._sweep()

    async def publish(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
    ) -> StreamPosition | None:
        """Number, keep and hand on one publication, as `Broker.publish`.

        A repeated idempotency key publishes nothing and returns the first result. A `version` that
        is not newer than the stream's publishes nothing and returns the stream's top.

        Waits for room in the intake before anything is numbered; cancelled there, nothing
        was published.
        """
        await self._room()
        return self.publish_nowait(
            publication, options, idempotency_key=idempotency_key, skip_history=skip_history
        )

    def publish_nowait(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
    ) -> StreamPosition | None:
        """`publish` without waiting.

        Raises:
            trio.WouldBlock: the intake is full; nothing was published.
        """
        if self._intake is None:
            raise trio.WouldBlock
        self._intake.check_room()
        key = (publication.channel, idempotency_key)
        if idempotency_key and (known := self._first_result(key)):
            return known[0]
        position = self._take(publication, options, skip_history=skip_history)
        if idempotency_key:
            self._results[key] = (trio.current_time() + self._idempotency_ttl, position)
        return position

    def _take(
        self, publication: Publication, options: ChannelOptions, *, skip_history: bool
    ) -> StreamPosition | None:
        """Number, keep and hand on; only return the top if the stream's version is as new."""
        assert self._intake is not None
        if options.history_size > 0 and not skip_history:
            stream = self._stream(publication.channel, options)
            if stream.outdates(publication):
                return stream.position
            publication = stream.append(publication, options)
        self._intake.put_nowait(publication)
        return publication.position

    async def announce(self, announcement: Announcement) -> None:
        """Hand an announcement on once the intake has room."""
        (await self._room()).put_nowait(announcement)

    async def _room(self) -> EventSink:
        """The intake, once it has room. The caller must use the room before it awaits anything."""
        if self._intake is None:
            await self._running.wait()
        assert self._intake is not None
        await self._intake.wait_room()
        return self._intake

    async def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> tuple[Sequence[Publication], StreamPosition]:
        """Publications since a position, and the top; see `Broker.history`."""
        await trio.lowlevel.checkpoint()
        stream = self._stream(channel, options)
        stream.expire(trio.current_time())
        if limit == 0 or (since is not None and since.epoch not in ("", stream.epoch)):
            return (), stream.position
        if reverse:
            before = stream.top + 1 if since is None else since.offset
            return stream.before(before, limit), stream.position
        return stream.after(0 if since is None else since.offset, limit), stream.position

    async def remove_history(self, channel: str) -> None:
        """Forget a channel's publications; its top and epoch stay."""
        await trio.lowlevel.checkpoint()
        if channel in self._streams:
            self._streams[channel].publications.clear()

    def outage(self) -> str:
        """Always empty: this broker works inside this process."""
        return ""

    def _stream(self, channel: str, options: ChannelOptions) -> _Stream:
        stream = self._streams.get(channel)
        if stream is not None and trio.current_time() >= stream.forgotten_at:
            stream = None  # Its numbering begins again, under a new epoch.
        if stream is None:
            known = channel in self._streams
            stream = self._streams[channel] = _Stream(options)
            if not known:
                heapq.heappush(self._due, (stream.until, channel))
        return stream

    def _first_result(self, key: tuple[str, str]) -> tuple[StreamPosition | None] | None:
        found = self._results.get(key)
        if found is None or found[0] <= trio.current_time():
            self._results.pop(key, None)
            return None
        return (found[1],)

    async def _sweep(self) -> None:
        """Drop expired publications, then expired streams and idempotency keys."""
        now = trio.current_time()
        handled = 0
        while self._due and self._due[0][0] <= now:
            _, channel = heapq.heappop(self._due)
            self._look_at(channel, now)
            handled += 1
            if handled % _SWEEP_STREAMS == 0:
                await trio.lowlevel.checkpoint()
        while self._results and next(iter(self._results.values()))[0] <= now:
            self._results.popitem(last=False)

    def _look_at(self, channel: str, now: float) -> None:
        """Expire one stream as far as it is due, and note when to look again."""
        stream = self._streams[channel]
        if now >= stream.forgotten_at:
            del self._streams[channel]
            return
        stream.expire(now)
        next_look = stream.forgotten_at if now >= stream.until else stream.until
        heapq.heappush(self._due, (next_look, channel))
