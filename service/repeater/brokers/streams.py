"""The streams of the memory broker: numbers and last publications of channels, within bounds.

Reading makes nothing. A stream begins with its first publication. All streams together are bounded
in bytes (publications of the channel that was published to least recently go first, oldest first)
and in number (the stream that was published to least recently is forgotten). Nobody loses by that
without being told: missing publications make a recovery fail, and so does another epoch.

Streams with the same lifetimes expire in the order in which they were published to. So they are
kept in that order, and nothing else is needed to find what has expired.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from time import time_ns
from typing import Final

import msgspec
import trio

from repeater.brokers.epochs import Epochs
from repeater.options import ChannelOptions
from repeater.publication import Publication, StreamPosition, weight_of

_INDEXED: Final = (
    1_000  # up to so many publications are fetched by index, which is quick at the top
)
_SWEPT: Final = 1_000  # publications and streams dropped in one turn of the scheduler: about 0.5 ms


class Stream:
    """One channel's numbers and its last publications. `Streams` makes and changes it."""

    __slots__ = (
        "channel",
        "epoch",
        "options",
        "order",
        "publications",
        "published",
        "top",
        "version",
    )

    def __init__(self, channel: str, epoch: str, options: ChannelOptions, order: _Order) -> None:
        self.channel = channel
        self.epoch = epoch
        self.options = options
        self.order = order
        self.top = 0
        self.version = ("", 0)
        """`version_epoch` and `version` of the last publication that had a version."""
        self.publications: deque[Publication] | None = None
        """Oldest first; None while the stream is empty, because an empty deque takes 600 bytes."""
        self.published = 0.0
        """When the newest publication came, on the clock of `Streams`."""

    @property
    def position(self) -> StreamPosition:
        """The top."""
        return StreamPosition(self.top, self.epoch)

    def outdates(self, publication: Publication) -> bool:
        """Whether a publication has a version that is not newer than the stream's."""
        epoch, version = self.version
        return 0 < publication.version <= version and publication.version_epoch == epoch

    def expired(self, now: float) -> bool:
        """Whether the publications have reached the end of their life."""
        return now >= self.published + self.options.history_ttl

    def over(self, now: float) -> bool:
        """Whether offset and epoch have reached the end of their life, too."""
        options = self.options
        return now >= self.published + max(options.history_ttl, options.history_meta_ttl)

    def after(self, offset: int, limit: int | None) -> Sequence[Publication]:
        """The publications after `offset`, oldest first."""
        kept = self.publications or ()
        start = max(0, offset - self.top + len(kept))
        end = len(kept) if limit is None else min(len(kept), start + limit)
        if end - start <= _INDEXED:
            return tuple(kept[index] for index in range(start, end))
        return tuple(islice(kept, start, end))

    def before(self, offset: int, limit: int | None) -> Sequence[Publication]:
        """The publications before `offset`, newest first."""
        kept: Iterable[Publication] = reversed(self.publications or ())
        start = max(0, self.top - offset + 1)
        return tuple(islice(kept, start, None if limit is None else start + limit))


class _Order:
    """The streams of the same lifetimes; those that were published to least recently come first."""

    __slots__ = ("bare", "full")

    def __init__(self) -> None:
        self.full: OrderedDict[str, Stream] = OrderedDict()
        """Streams with publications."""
        self.bare: OrderedDict[str, Stream] = OrderedDict()
        """Streams without, in the order in which the last publication went."""


class Streams:
    """All streams of one broker. Lives inside it; `sweep` is called once a second."""

    def __init__(
        self,
        *,
        byte_limit: int,
        limit: int,
        now: Callable[[], float] = trio.current_time,
        epochs: Epochs | None = None,
    ) -> None:
        """Bound the publications of all streams by weight, and the streams by number.

        Args:
            byte_limit: The most bytes of all publications.
            limit: The most streams.
            now: The clock of the lifetimes, in seconds.
            epochs: Those of channels without a stream; new ones by default.
        """
        self._now = now
        self._byte_limit = byte_limit
        self._limit = limit
        self._streams: dict[str, Stream] = {}
        self._orders: dict[tuple[float, float], _Order] = {}
        self._epochs = epochs or Epochs()
        self.bytes = 0
        """The weight of all publications that are kept."""
        self.dropped = 0
        """Publications that were dropped before their time, because of the bound in bytes."""
        self.forgotten = 0
        """Streams that were forgotten before their time, because of the bound in number."""

    def __len__(self) -> int:
        return len(self._streams)

    def find(self, channel: str, now: float) -> Stream | None:
        """The stream of a channel, as far as it has not expired; None if it does not exist."""
        stream = self._streams.get(channel)
        if stream is None:
            return None
        if stream.expired(now):  # first, because offset and epoch outlive the publications
            if stream.over(now):
                self._forget(stream)
                return None
            self._clear(stream)
        return stream

    def top(self, channel: str) -> StreamPosition:
        """The position of a channel without a stream. Its first publication has the same epoch."""
        return StreamPosition(0, self._epochs.of(channel))

    def append(
        self,
        stream: Stream | None,
        publication: Publication,
        options: ChannelOptions,
        weight: int,
        now: float,
    ) -> Publication:
        """Number and keep a publication; returns it with its offset and epoch.

        Args:
            stream: What `find` says of the publication's channel, at the same time.
            publication: The next one of the channel.
            options: The channel's options, with a `history_size` above 0.
            weight: The publication's `weight_of`.
            now: The Trio time.
        """
        top = 0 if stream is None else stream.top
        epoch = self._epochs.of(publication.channel) if stream is None else stream.epoch
        numbered = msgspec.structs.replace(
            publication, offset=top + 1, epoch=epoch, time=time_ns() // 1_000_000
        )
        self.keep(stream, numbered, options, weight, now)
        return numbered

    def keep(
        self,
        stream: Stream | None,
        numbered: Publication,
        options: ChannelOptions,
        weight: int,
        now: float,
    ) -> Stream:
        """Keep a publication that has its number already; returns its stream. Args as `append`."""
        if stream is None:
            stream = self._begin(numbered.channel, numbered.epoch, options)
        elif stream.options is not options:
            self._follow(stream, options)
        stream.top = numbered.offset
        if numbered.version:
            stream.version = (numbered.version_epoch, numbered.version)
        stream.published = now
        kept = stream.publications
        if kept is None:
            kept = self._fill(stream)
        else:
            stream.order.full.move_to_end(stream.channel)
            if len(kept) >= options.history_size:
                self.bytes -= weight_of(kept.popleft())
        kept.append(numbered)
        self.bytes += weight
        if self.bytes > self._byte_limit:
            self._drop_oldest(stream)
        return stream

    def _fill(self, stream: Stream) -> deque[Publication]:
        """Let an empty stream have publications."""
        kept = stream.publications = deque()
        stream.order.bare.pop(stream.channel, None)
        stream.order.full[stream.channel] = stream
        return kept

    def pass_by(self, channel: str) -> None:
        """Note a publication to a channel whose options keep no history.

        The channel's stream misses it, so whoever comes back when history is on again must not be
        told that nothing is missing.
        """
        self._epochs.interrupt(channel)
        stream = self._streams.get(channel)
        if stream is not None:
            self._forget(stream)

    def page(
        self,
        channel: str,
        *,
        since: StreamPosition | None,
        limit: int | None,
        reverse: bool,
    ) -> tuple[Sequence[Publication], StreamPosition]:
        """Publications and the top, as `Broker.history` answers."""
        stream = self.find(channel, self._now())
        if stream is None:
            return (), self.top(channel)
        if limit == 0 or (since is not None and since.epoch not in ("", stream.epoch)):
            return (), stream.position
        if reverse:
            before = stream.top + 1 if since is None else since.offset
            return stream.before(before, limit), stream.position
        return stream.after(0 if since is None else since.offset, limit), stream.position

    def clear(self, channel: str) -> None:
        """Drop the publications of a channel; its top and epoch stay."""
        stream = self._streams.get(channel)
        if stream is not None:
            self._clear(stream)

    async def sweep(self) -> None:
        """Drop what has expired."""
        now = self._now()
        swept = 0
        for lifetimes, order in tuple(self._orders.items()):
            for stream in _while_first(order.full, lambda one: one.expired(now)):
                swept += 1 + len(stream.publications or ())
                self._clear(stream)
                if swept >= _SWEPT:
                    swept = 0
                    await trio.lowlevel.checkpoint()
            for stream in _while_first(order.bare, lambda one: one.over(now)):
                swept += 1
                self._forget(stream)
                if swept >= _SWEPT:
                    swept = 0
                    await trio.lowlevel.checkpoint()
            if not (order.full or order.bare):
                self._orders.pop(lifetimes, None)

    def _begin(self, channel: str, epoch: str, options: ChannelOptions) -> Stream:
        if len(self._streams) >= self._limit:
            self._forget_oldest()
        stream = self._make(channel, epoch, options, self._order(options))
        self._streams[channel] = stream
        return stream

    _make = Stream
    """What a stream is made as."""

    def _order(self, options: ChannelOptions) -> _Order:
        lifetimes = options.history_ttl, options.history_meta_ttl
        order = self._orders.get(lifetimes)
        if order is None:
            order = self._orders[lifetimes] = _Order()
        return order

    def _follow(self, stream: Stream, options: ChannelOptions) -> None:
        """Use other options for a stream, because they were reloaded."""
        stream.options = options
        kept = stream.publications
        while kept is not None and len(kept) > options.history_size:
            self.bytes -= weight_of(kept.popleft())
        self._shortened(stream)
        order = self._order(options)
        if order is not stream.order:
            bare, full = stream.order.bare, stream.order.full
            if full.pop(stream.channel, None) is not None:
                order.full[stream.channel] = stream
            elif bare.pop(stream.channel, None) is not None:
                order.bare[stream.channel] = stream
            stream.order = order

    def _drop_oldest(self, newest: Stream) -> None:
        """Drop publications until the rest fits. The newest one of all is kept in any case."""
        while self.bytes > self._byte_limit and self._drop_first(newest):
            pass

    def _drop_first(self, newest: Stream | None = None) -> bool:
        """Drop the oldest of the stream that was published to least recently; whether one was.

        The last publication of `newest` is kept, and its others go after those of all the rest.
        """
        fronts = [next(iter(one.full.values())) for one in self._orders.values() if one.full]
        oldest = min((one for one in fronts if one is not newest), key=_published, default=newest)
        kept = None if oldest is None else oldest.publications
        if oldest is None or not kept or (oldest is newest and len(kept) == 1):
            return False
        self.bytes -= weight_of(kept.popleft())
        self.dropped += 1
        self._shortened(oldest)
        if not kept:
            self._clear(oldest)
        return True

    def _forget_oldest(self) -> None:
        """Forget a stream: of those without publications, or else of all, the oldest."""
        orders = self._orders.values()
        fronts = [next(iter(one.bare.values())) for one in orders if one.bare]
        fronts = fronts or [next(iter(one.full.values())) for one in orders if one.full]
        self.forgotten += 1
        self._forget(min(fronts, key=_published))

    def _shortened(self, stream: Stream) -> None:
        """For streams that are kept elsewhere, too: publications at the beginning were dropped."""

    def _clear(self, stream: Stream) -> None:
        kept, stream.publications = stream.publications, None
        if kept is None:
            return
        self.bytes -= sum(map(weight_of, kept))
        del stream.order.full[stream.channel]
        stream.order.bare[stream.channel] = stream

    def _forget(self, stream: Stream) -> None:
        self._clear(stream)
        del stream.order.bare[stream.channel]
        del self._streams[stream.channel]
        self._epochs.forget(stream.channel)


def _published(stream: Stream) -> float:
    return stream.published


def _while_first(
    streams: OrderedDict[str, Stream], due: Callable[[Stream], bool]
) -> Iterator[Stream]:
    """The first stream, again and again while it is due. The caller takes it out."""
    while streams:
        stream = next(iter(streams.values()))
        if not due(stream):
            return
        yield stream
