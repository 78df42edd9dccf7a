"""Codecs of plain subscribers that can come back: each event has an id, the client's position.

A client keeps the last id only, so an id must cover every channel of its client. The bytes must
also be the same for many clients. With one channel both are easy: its position is the whole id.
With several channels, the clients with exactly the same positions share a codec with `SetIds`. The
repeater encodes with this codec in the order in which the clients get the events, and so moves its
positions on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

from repeater.errors import Disconnect
from repeater.protocol.centrifugo.codecs import Codec, Frame
from repeater.protocol.centrifugo.json_format import PLAIN_DATA
from repeater.protocol.sse.event_id import EventIds, event_id_of_one
from repeater.publication import Publication, StreamPosition

Ids = Callable[[Publication], bytes]
"""The id of a publication's event; empty for no id. Called once for each, in their order."""


def no_ids(_publication: Publication) -> bytes:
    """For channels in which no client can come back."""
    return b""


def ids_of_channel(publication: Publication) -> bytes:
    """For clients of exactly one channel: the publication's own position, if it has one."""
    position = publication.position
    return b"" if position is None else event_id_of_one(publication.channel, position)


class SetIds:
    """For clients with the same positions in the same channels. Lives as long as their codec.

    Rule: a client joins only when it has exactly these positions. From then on all clients of the
    codec get the same events, so the positions hold for each of them.
    """

    __slots__ = ("_ids",)

    def __init__(
        self, positions: Mapping[str, StreamPosition], channels: Iterable[str] = ()
    ) -> None:
        """Begin at these positions; the arguments are those of `EventIds`."""
        self._ids = EventIds(positions, channels)

    @property
    def positions(self) -> Mapping[str, StreamPosition]:
        """How far the clients are, by channel."""
        return self._ids.positions

    def __call__(self, publication: Publication) -> bytes:
        """All positions after this publication, as an id."""
        position = publication.position
        if position is None:
            return b""
        self._ids.move(publication.channel, position)
        return self._ids.text()


class EventCodec(Codec):
    """Writes events with ids. What a codec writes depends on its class, and the ids on `ids`.

    The methods of its class are missing here. An `ABC` would say so when an object is made, but
    asking whether an object is of its kind would cost each connection more than a microsecond.
    """

    __slots__ = ("ids", "of_channel")

    carries_binary: ClassVar[bool] = False
    """Whether an event can carry binary data; else its event is the id alone."""
    ids_in_event: ClassVar[int] = 1
    """How often an event has its id."""

    def __init__(
        self,
        name: str,
        *,
        frame: Frame | None,
        ping: bytes | None,
        answered: bool = True,
        ids: Ids = no_ids,
    ) -> None:
        """As `Codec`, with the source of ids."""
        super().__init__(name, PLAIN_DATA, frame=frame, ping=ping, answered=answered)
        self.takes_binary = self.carries_binary
        self.ids = ids
        self.of_channel: EventCodec = self
        """The codec that writes alike, for clients that can come back in exactly one channel."""
        if ids is no_ids:
            self.of_channel = self._with(f"{name} channel", ids_of_channel)

    def of_set(
        self, positions: Mapping[str, StreamPosition], channels: Iterable[str] = ()
    ) -> EventCodec:
        """A codec that writes alike, for clients at these positions; see `SetIds`."""
        return self._with(f"{self.name} set", SetIds(positions, channels))

    def _with(self, name: str, ids: Ids) -> EventCodec:
        made = type(self)
        return made(name, frame=self._frame, ping=self.ping, answered=self.answered, ids=ids)

    @property
    def positions(self) -> Mapping[str, StreamPosition]:
        """How far the clients of a set are, by channel; empty for other codecs."""
        return self.ids.positions if isinstance(self.ids, SetIds) else {}

    def publications(
        self, publications: Sequence[Publication], base: Publication | None = None
    ) -> list[bytes]:
        """The events; the id of each is the client's position after this event."""
        ids = self.ids
        chunks = [self.event(one, ids(one)) for one in publications]
        return [b"".join(chunks)] if self._frame is not None and len(chunks) > 1 else chunks

    def size_with_id(self, publication: Publication, length: int) -> int:
        """At most the bytes of an event whose id has so many; 0 for none."""
        size = self.size(publication)
        return size + self.ids_in_event * length if size else 0

    def event(self, publication: Publication, event_id: bytes) -> bytes:
        """The chunk of one event."""
        raise NotImplementedError

    def silent_id(self, event_id: bytes) -> bytes:
        """The chunk that only moves the client's id on; empty without an id."""
        raise NotImplementedError

    def reset(self, channels: Sequence[str], event_id: bytes) -> bytes:
        """The chunk that says that events of these channels are missing."""
        raise NotImplementedError

    def farewell(self, disconnect: Disconnect) -> bytes:
        """The chunk that says why the connection ends."""
        raise NotImplementedError
