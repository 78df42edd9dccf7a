"""What a plain subscriber gets before its live events: what it missed, or a `reset`.

Missed events are encoded while publications still gather, and then what gathered meanwhile, in the
turns that all readers share. The end is one sync call in which the few that came last are added and
the subscriptions go live, so that nothing comes between.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from repeater.fanout.recovery import Loss
from repeater.protocol.sse.event_id import EventIds, event_id
from repeater.publication import Publication, StreamPosition

if TYPE_CHECKING:
    from repeater.clients.joining import Joining
    from repeater.protocol.event_codec import EventCodec
    from repeater.turns import GiveWay


class Replay:
    """The first bytes of one client. Lives until its client goes live: `prepare`, then `finish`.

    Rule: each event has an id that says how far the client is after exactly this event, so that a
    stream may break anywhere. If all of it is more than the limit, every channel counts as lost; a
    single event is sent in any case.
    """

    def __init__(
        self,
        codec: EventCodec,
        joinings: Sequence[Joining],
        channels: Collection[str],
        asked: Collection[str],
        limit: int,
    ) -> None:
        """Plan the replay, sync, right after the subscriptions were opened, before any answer.

        Args:
            codec: Writes for the client.
            joinings: The opened subscriptions.
            channels: The names of all channels of the client.
            asked: Those of which the client asked for past events; it is told what it cannot get.
            limit: The most bytes.
        """
        self._codec = codec
        self._channels = channels
        self._limit = limit
        self._size = self._count = 0
        self._known, lost = list[str](), list[str]()
        self._tracked: list[Joining] = []
        self._recovered: list[Joining] = []
        self._at = at = dict[str, StreamPosition]()
        self._ids: EventIds | None = None  # made with the first event: most clients missed nothing
        self._drops = 0
        """How often what gathered was dropped. After the answer nobody misses that unheard."""
        self.is_empty = True
        """Whether the client gets no past events, so that there is nothing to prepare."""
        for one in joinings:
            one.heed_drop()
            name, joined, recovered = _name(one), one.joined, False
            if one.subscription.recoverable:
                self._tracked.append(one)
                self._drops += one.drops
                if joined is not None:
                    at[name] = joined.begin
                    recovered = joined.recovered
            if recovered:
                self._recovered.append(one)
                if joined is not None and joined.publications:
                    self.is_empty = False
            if name in asked:
                self._known.append(name)
                if joined is None or joined.lost or not recovered:
                    lost.append(name)
        self._tracked.sort(key=_name)
        self._recovered.sort(key=_name)
        begin = event_id(at, channels)
        first = codec.reset(lost, begin) if lost else codec.silent_id(begin)
        self._chunks = [first] if first else []

    async def prepare(self, give_way: GiveWay) -> None:
        """Encode what was missed, then what gathered meanwhile, until nothing more has gathered.

        It ends in any case: if publications come faster, they are too much at last.
        """
        missed = [one.joined.publications for one in self._recovered if one.joined is not None]
        while any(missed):
            for publications in missed:
                for publication in publications:
                    if self._too_much:
                        return
                    self._add(publication)
                    await give_way()
            missed = [one.absorb() for one in self._tracked]

    def finish(self) -> Sequence[bytes]:
        """The chunks to send, now that the client goes live in the same breath."""
        drops = 0
        for joining in self._tracked:
            for publication in joining.absorb():
                if not self._too_much:
                    self._add(publication)
            drops += joining.drops
        if drops == self._drops and not self._too_much:
            chunks = self._chunks
            return [b"".join(chunks)] if self._codec.framed and len(chunks) > 1 else chunks
        if self._too_much:
            for one in self._recovered:
                one.lose(Loss.ROOM)
        reached = {_name(one): one.joined.position for one in self._tracked if one.joined}
        passed = [name for name, at in reached.items() if at != self._at.get(name)]
        lost = list(dict.fromkeys(self._known + passed))
        begin, codec = event_id(reached, self._channels), self._codec
        chunk = codec.reset(lost, begin) if lost else codec.silent_id(begin)
        return [chunk] if chunk else []

    @property
    def _too_much(self) -> bool:
        return self._count > 1 and self._size > self._limit

    def _add(self, publication: Publication) -> None:
        if self._ids is None:
            self._ids = EventIds(self._at, self._channels)
        if publication.position is not None:
            self._ids.move(publication.channel, publication.position)
        # A binary publication that the codec cannot carry only moves the position on.
        chunk = self._codec.event(publication, self._ids.text())
        if chunk:
            self._chunks.append(chunk)
        self._size += len(chunk)
        self._count += 1


def _name(joining: Joining) -> str:
    return joining.subscription.channel.name
