"""The default broker: streams in this process's memory, gone with it.

Numbering, history and hand-over happen without an await between them, so a channel's order in
history and in fan-out is the same. A restart makes new epochs, which is how a client learns that
numbering began again.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import islice

import msgspec
import trio

from service.interfaces import PublicationSink
from service.options import NodeOptions
from service.publication import Publication, StreamPosition

_SWEEP_INTERVAL = 1.0  # seconds between two looks for what expired
_SWEEP_STREAMS = 1_000  # expired streams handled in one turn of the scheduler


class _Stream:
    """One channel's numbers and its last publications."""

    __slots__ = ("epoch", "publications", "published_at", "top")

    def __init__(self, size: int) -> None:
        self.epoch = secrets.token_urlsafe(6)
        self.top = 0
        self.publications: deque[Publication] = deque(maxlen=size)
        self.published_at = trio.current_time()

    @property
    def position(self) -> StreamPosition:
        return StreamPosition(self.top, self.epoch)


class MemoryBroker:
    """Implements `Broker` for one process. Lives inside `open_node`; ended with it."""

    def __init__(self, options: NodeOptions) -> None:
        self._options = options
        self._intake: PublicationSink | None = None
        self._running = trio.Event()
        # Oldest publication first in each, so that expiry looks at the front only.
        self._filled: OrderedDict[str, _Stream] = OrderedDict()
        self._emptied: OrderedDict[str, _Stream] = OrderedDict()
        self._results: OrderedDict[tuple[str, str], tuple[float, StreamPosition | None]] = (
            OrderedDict()
        )

    async def run(self, intake: PublicationSink) -> None:
        """Hand publications to `intake`, and forget what expired, until cancelled."""
        self._intake = intake
        self._running.set()
        while True:
            await trio.sleep(_SWEEP_INTERVAL)
            await self._sweep()

    async def publish(
        self, publication: Publication, *, idempotency_key: str = "", skip_history: bool = False
    ) -> StreamPosition | None:
        """Number, keep and hand on; a repeated key returns the first result and does nothing.

        Waits for room in the intake before anything is numbered; cancelled there, nothing
        was published.
        """
        await self._running.wait()
        assert self._intake is not None
        await self._intake.wait_room()
        return self.publish_nowait(
            publication, idempotency_key=idempotency_key, skip_history=skip_history
        )

    def publish_nowait(
        self, publication: Publication, *, idempotency_key: str = "", skip_history: bool = False
    ) -> StreamPosition | None:
        """`publish` without waiting.

        Raises:
            trio.WouldBlock: there is no room in the intake; nothing was published.
        """
        if self._intake is None:
            raise trio.WouldBlock
        self._intake.check_room()
        key = (publication.channel, idempotency_key)
        if idempotency_key and (known := self._first_result(key)):
            return known[0]
        if self._options.channel.history_size > 0 and not skip_history:
            publication = self._append(publication)
        self._intake.put_nowait(publication)
        position = (
            StreamPosition(publication.offset, publication.epoch) if publication.offset else None
        )
        if idempotency_key:
            expires = trio.current_time() + self._options.idempotency_ttl
            self._results[key] = (expires, position)
        return position

    async def history(
        self, channel: str, *, since: StreamPosition | None = None, limit: int | None = None
    ) -> tuple[Sequence[Publication], StreamPosition]:
        """Publications after `since`, oldest first, and the top. Makes an unseen stream.

        A position of another epoch selects nothing: its offsets mean something else.
        """
        await trio.lowlevel.checkpoint()
        stream = self._stream(channel)
        if self._has_expired(stream):
            stream.publications.clear()
        if since is not None and since.epoch != stream.epoch:
            return (), stream.position
        after = 0 if since is None else since.offset
        first = stream.top - len(stream.publications)  # the offset before the oldest kept
        kept = islice(stream.publications, max(0, after - first), None)
        return tuple(islice(kept, limit)), stream.position

    def _append(self, publication: Publication) -> Publication:
        stream = self._stream(publication.channel)
        if self._has_expired(stream):
            stream.publications.clear()
        stream.top += 1
        numbered = msgspec.structs.replace(publication, offset=stream.top, epoch=stream.epoch)
        stream.publications.append(numbered)
        stream.published_at = trio.current_time()
        self._emptied.pop(publication.channel, None)
        self._filled[publication.channel] = stream
        self._filled.move_to_end(publication.channel)
        return numbered

    def _stream(self, channel: str) -> _Stream:
        stream = self._filled.get(channel) or self._emptied.get(channel)
        if stream is None:
            stream = self._emptied[channel] = _Stream(self._options.channel.history_size)
        return stream

    def _has_expired(self, stream: _Stream) -> bool:
        return trio.current_time() >= stream.published_at + self._options.channel.history_ttl

    def _first_result(self, key: tuple[str, str]) -> tuple[StreamPosition | None] | None:
        found = self._results.get(key)
        if found is None or found[0] <= trio.current_time():
            self._results.pop(key, None)
            return None
        return (found[1],)

    async def _sweep(self) -> None:
        """Drop expired publications, then expired streams and idempotency keys."""
        now = trio.current_time()
        streams = (
            (self._filled, self._options.channel.history_ttl),
            (self._emptied, self._options.channel.history_meta_ttl),
        )
        for kept, ttl in streams:
            handled = 0
            while kept and next(iter(kept.values())).published_at + ttl <= now:
                name, stream = kept.popitem(last=False)
                if kept is self._filled:
                    stream.publications.clear()
                    self._emptied[name] = stream
                handled += 1
                if handled % _SWEEP_STREAMS == 0:
                    await trio.lowlevel.checkpoint()
        while self._results and next(iter(self._results.values()))[0] <= now:
            self._results.popitem(last=False)
