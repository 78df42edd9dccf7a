"""What a node makes of messages, tops and reads of one channel: pure decisions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repeater.brokers.valkey.follower import KEPT, Followed, Room, Verdict
from repeater.brokers.valkey.values import NO_STREAM, Message, Place, Read
from repeater.publication import Event, Publication, Rupture

E = "epoch"


def at(offset: int, epoch: str = E, uid: str = "") -> Place:
    return Place(offset, epoch, (uid or f"u{offset}").encode() if offset else b"")


def message(offset: int, epoch: str = E, uid: str = "") -> Message:
    place = at(offset, epoch, uid)
    return Message(place, Publication("c", place.uid, offset, epoch if offset else ""))


def unnumbered(data: bytes) -> Message:
    return Message(NO_STREAM, Publication("c", data))


def following(place: Place = NO_STREAM) -> Followed:
    """One that has begun at a place."""
    one = Followed("c", Room())
    one.read(Read(place), one.doubts)
    assert one.place == place
    assert not one.reading
    return one


def doubting(place: Place, *kept: Message) -> Followed:
    """One that is in doubt, with messages that wait."""
    one = following(place)
    one.doubt()
    for each in kept:
        assert not one.take(each)
    return one


def reading(one: Followed, top: Place, *entries: Message) -> Verdict:
    return one.read(Read(top, entries), one.doubts)


def told(events: Sequence[Event]) -> list[object]:
    return ["rupture" if isinstance(one, Rupture) else one.data.decode() for one in events]


def test_the_next_message_is_handed_on() -> None:
    """A message that follows the place is handed on, and becomes the place."""
    one = following(at(4))
    assert one.take(message(5))
    assert one.take(message(6))
    assert one.place == at(6)
    assert not one.reading


def test_the_first_message_of_any_stream_follows_no_stream() -> None:
    """Where there was no stream, the first publication of whichever stream is handed on."""
    one = following()
    assert one.take(message(1))
    assert one.place == at(1)


def test_a_double_is_dropped() -> None:
    """The message of the place itself is dropped, and nothing is in doubt."""
    one = following(at(4))
    assert not one.take(message(4))
    assert not one.reading


@pytest.mark.parametrize(
    "strange",
    [
        message(6),
        message(3),
        message(4, uid="other"),
        message(5, "other"),
        Message(at(4, "new"), None),
        Message(at(4, uid=" "), None),
    ],
    ids=["a gap", "an old one", "another of the number", "another epoch", "a fork", "look again"],
)
def test_what_does_not_fit_puts_the_stream_in_doubt(strange: Message) -> None:
    """A message that neither follows the place nor is the place has the stream read."""
    one = following(at(4))
    assert not one.take(strange)
    assert one.reading
    assert one.place == at(4)


def test_a_message_without_a_number_is_in_no_stream() -> None:
    """It is handed on and changes no place."""
    one = following(at(4))
    assert one.take(unnumbered(b"x"))
    assert one.place == at(4)


def test_what_was_lost_is_read() -> None:
    """After a lost message, the stream's entries and the messages that waited come in order."""
    one = following(at(4))
    one.take(message(6))
    one.take(message(7))
    verdict = reading(one, at(6), message(4), message(5), message(6))
    assert told(verdict.events) == ["u5", "u6", "u7"]
    assert one.place == at(7)
    assert not one.reading


def test_messages_wait_for_the_read() -> None:
    """Messages that come while the stream is read are handed on behind what was read."""
    one = doubting(at(4), message(6), message(7), message(8))
    verdict = reading(one, at(7), message(4), message(5), message(6), message(7))
    assert told(verdict.events) == ["u5", "u6", "u7", "u8"]
    assert one.place == at(8)
    assert not one.reading
    assert one.kept == 0


def test_what_has_no_number_keeps_its_turn() -> None:
    """Publications without a number stay between those that came before and after."""
    one = doubting(at(4), unnumbered(b"x"), message(6), unnumbered(b"y"), message(7))
    verdict = reading(one, at(6), message(4), message(5), message(6))
    assert told(verdict.events) == ["u5", "x", "u6", "y", "u7"]


def test_a_place_that_is_the_top_is_silent() -> None:
    """After a reconnection nothing is handed on and nobody told if nothing was missed."""
    one = doubting(at(4))
    assert told(reading(one, at(4), message(4)).events) == []
    assert not one.reading


def test_a_place_that_is_not_kept_is_a_rupture() -> None:
    """If the stream does not reach back to the place, publications are missing."""
    one = doubting(at(4))
    verdict = reading(one, at(9), message(7), message(8), message(9))
    assert told(verdict.events) == ["rupture"]
    assert one.place == at(9)
    assert not one.reading


def test_another_epoch_is_a_rupture() -> None:
    """A new stream begins at its top."""
    one = doubting(at(4))
    assert told(reading(one, at(2, "new"), message(1, "new")).events) == ["rupture"]
    assert one.place == at(2, "new")


def test_a_stream_that_has_gone_is_a_rupture() -> None:
    """A stream that was evicted has no place any more."""
    one = doubting(at(4))
    assert told(reading(one, NO_STREAM).events) == ["rupture"]
    assert one.take(message(1, "new"))


@pytest.mark.parametrize(
    ("top", "entries"),
    [
        (at(3), []),
        (at(4, uid="other"), [message(4, uid="other")]),
        (at(5), [message(4, uid="other"), message(5)]),
    ],
    ids=["shorter", "as long", "longer"],
)
def test_a_fork_is_found_by_the_uid(top: Place, entries: list[Message]) -> None:
    """If the place's publication is not in the stream, its epoch has to be ended."""
    one = doubting(at(4))
    verdict = reading(one, top, *entries)
    assert verdict == Verdict(forked=E)
    assert one.reading
    assert one.place == at(4)


@pytest.mark.parametrize("between", [at(3, "new", "other"), NO_STREAM], ids=["fork", "eviction"])
def test_an_epoch_that_comes_back_is_ended_again(between: Place) -> None:
    """A second failover may lose the end of an epoch, whose clients have been told more of it."""
    one = doubting(at(4))
    assert told(reading(one, between).events) == ["rupture"]
    assert not one.take(message(between.offset + 1))
    assert one.reading
    assert reading(one, at(4), message(4)) == Verdict(forked=E)
    assert told(reading(one, at(4, "third")).events) == ["rupture"]
    assert one.take(message(5, "third"))


@pytest.mark.parametrize("is_reading", [False, True])
def test_an_epoch_that_comes_back_empty_is_ended_again(is_reading: bool) -> None:
    """Where nothing was, the epoch of a stream without publications is noted, if it is a new one.

    A failover that lost all of a stream would else count again in an epoch whose numbers are known.
    """
    one = doubting(at(4))
    assert told(reading(one, NO_STREAM).events) == ["rupture"]
    if is_reading:
        one.doubt()
    assert one.head(at(0)) == Verdict()
    assert one.reading
    assert reading(one, at(0)) == Verdict(forked=E)
    assert told(reading(one, at(0, "new")).events) == []
    assert one.take(message(1, "new"))


def test_what_waits_survives_a_fork() -> None:
    """The new epoch is a rupture; a message of it that waited is handed on."""
    one = doubting(at(4), message(4, "new"))
    reading(one, at(3))
    verdict = reading(one, at(3, "new", "old"))
    assert told(verdict.events) == ["rupture", "u4"]


def test_more_than_one_read() -> None:
    """A stream with more entries than are read at a time is read in several goes."""
    one = doubting(at(4), message(8))
    verdict = reading(one, at(7), message(4), message(5), message(6))
    assert told(verdict.events) == ["u5", "u6"]
    assert one.reading
    verdict = reading(one, at(7), message(6), message(7))
    assert told(verdict.events) == ["u7", "u8"]
    assert not one.reading


@pytest.mark.parametrize(
    "entries",
    [[message(4)], [message(4), message(6)], [message(4), message(5), message(7)]],
    ids=["nothing behind", "a hole", "a hole later"],
)
def test_a_stream_with_a_hole_is_a_rupture(entries: list[Message]) -> None:
    """If a stranger took entries out of the stream, nobody is told a stream without them."""
    one = doubting(at(4))
    assert told(reading(one, at(7), *entries).events) == ["rupture"]
    assert one.place == at(7)


def test_a_stream_from_its_beginning() -> None:
    """Who saw no stream gets all of the one that began meanwhile, if it is whole."""
    one = doubting(NO_STREAM)
    assert told(reading(one, at(2), message(1), message(2)).events) == ["u1", "u2"]
    one = doubting(NO_STREAM)
    assert told(reading(one, at(2), message(2)).events) == ["rupture"]


def test_a_stream_without_publications_has_an_epoch() -> None:
    """The epoch that a reader gave the stream is noted, and nobody is told."""
    one = following()
    assert told(one.head(at(0)).events) == []
    assert one.place == at(0)
    one = doubting(NO_STREAM)
    assert told(reading(one, at(0)).events) == []
    assert one.place == at(0)
    assert one.take(message(1))


def test_an_unborn_stream_that_was_forgotten_is_a_rupture() -> None:
    """Listeners have been told an epoch: a stream of another epoch is another stream."""
    one = following(at(0))
    assert not one.take(message(1, "new"))
    assert told(reading(one, at(1, "new"), message(1, "new")).events) == ["rupture"]


def test_an_old_message_that_waited_is_looked_at_once() -> None:
    """A message from before the place has the stream read once more, and then is forgotten."""
    one = doubting(at(4), message(2))
    assert told(reading(one, at(4), message(4)).events) == []
    assert one.reading
    assert told(reading(one, at(4), message(4)).events) == []
    assert not one.reading


def test_too_many_messages_are_read_instead() -> None:
    """More messages than are kept cost one more read, and none is lost."""
    one = doubting(at(0), *[message(offset) for offset in range(1, KEPT + 3)])
    assert one.kept == KEPT
    verdict = reading(one, at(1), message(1))
    assert told(verdict.events) == [f"u{offset}" for offset in range(1, KEPT + 1)]
    assert one.reading
    verdict = reading(one, at(KEPT + 2), *[message(KEPT + more) for more in range(3)])
    assert told(verdict.events) == [f"u{KEPT + 1}", f"u{KEPT + 2}"]
    assert not one.reading


def test_messages_of_all_channels_share_a_room() -> None:
    """Beyond the room's bytes messages are read instead; what was kept is given back."""
    room = Room(limit=1_000)
    first, second = Followed("c", room), Followed("c", room)
    for one in (first, second):
        one.read(Read(at(0)), one.doubts)
        one.doubt()
    for offset in range(1, 4):
        first.take(message(offset))
    assert 700 < room.bytes <= 1_000
    second.take(message(1))
    assert second.kept == 0
    reading(first, at(0))
    assert room.bytes == 0
    assert told(reading(second, at(1), message(1)).events) == ["u1"]
    assert second.reading


def test_messages_of_a_connection_that_has_ended_are_not_trusted() -> None:
    """Numbered messages that wait are forgotten with their connection, others are not."""
    one = doubting(at(4), message(5), unnumbered(b"x"))
    one.cut_off()
    assert told(reading(one, at(4), message(4)).events) == ["x"]
    assert one.place == at(4)
    assert not one.reading


def test_a_message_that_cannot_be_read_is_a_lost_one() -> None:
    """The stream is read, and once more if the message came while it was read."""
    one = following(at(4))
    one.miss()
    assert one.reading
    one.miss()
    reading(one, at(4), message(4))
    assert one.reading
    assert told(reading(one, at(5), message(4), message(5)).events) == ["u5"]
    assert not one.reading


def test_a_top_that_is_the_place_needs_no_read() -> None:
    """After a reconnection the top, told among the messages, ends the doubt by itself."""
    one = doubting(at(4))
    assert told(one.head(at(4)).events) == []
    assert not one.reading


def test_what_has_no_number_waits_for_the_top_only() -> None:
    """Messages without numbers that came since the reconnection are handed on with the top."""
    one = doubting(at(4), unnumbered(b"x"), unnumbered(b"y"))
    assert told(one.head(at(4)).events) == ["x", "y"]


def test_messages_that_follow_the_place_prove_nothing() -> None:
    """After a failover the next number can be of a stream that has lost the place's publication."""
    one = doubting(at(4), message(5))
    one.head(at(5))
    assert one.reading
    fork = reading(one, at(5), message(4, uid="other"), message(5))
    assert fork.forked == E


@pytest.mark.parametrize(
    ("kept", "top"),
    [
        ([], at(5)),
        ([], at(4, uid="other")),
        ([], at(4, "new")),
        ([], NO_STREAM),
        ([message(5)], at(5)),
        ([message(5, uid="other")], at(5)),
        ([message(4)], at(4)),
        ([Message(at(4), None)], at(4)),
    ],
)
def test_a_top_elsewhere_needs_a_read(kept: list[Message], top: Place) -> None:
    """If place and messages do not lead to the top exactly, the stream is read; all still waits."""
    one = doubting(at(4), *kept)
    assert told(one.head(top).events) == []
    assert one.reading
    assert one.place == at(4)
    assert one.kept == len(kept)


def test_a_top_elsewhere_is_a_doubt() -> None:
    """The position check: a top that is not the place has the stream read."""
    one = following(at(4))
    one.head(at(4))
    assert not one.reading
    one.head(at(5))
    assert one.reading


def test_the_first_top_begins() -> None:
    """Messages before the first top are in the history that is read later; others are handed on."""
    one = Followed("c", Room())
    for each in (message(4), unnumbered(b"x"), message(5)):
        assert not one.take(each)
    assert told(one.head(at(5)).events) == ["x"]
    assert one.take(message(6))


def test_a_read_of_an_older_doubt_says_nothing() -> None:
    """What was asked for before a connection ended, or before a top ended the doubt, is dropped."""
    one = doubting(at(4))
    asked = one.doubts
    one.head(at(4))
    assert one.take(message(5))
    one.doubt()
    assert told(one.read(Read(at(4), [message(4)]), asked).events) == []
    assert one.place == at(5)
    one = doubting(at(4))
    asked = one.doubts
    one.doubt()
    assert told(one.read(Read(at(3)), asked).events) == []
    assert one.reading


class World:
    """One stream, one bus that loses and doubles, and a node that follows."""

    size = 4

    def __init__(self) -> None:
        self.entries: list[Message] = []
        self.top = NO_STREAM
        self.count = 0
        self.bus: list[Message] = []
        self.one = Followed("c", Room())
        self.asked: tuple[Read, int] | None = None
        self.given: list[Event] = []
        self.before: tuple[Place, list[Message]] | None = None

    def publish(self) -> None:
        self.count += 1
        epoch = self.top.epoch or f"e{self.count}"
        self._add(message(self.top.offset + 1, epoch, f"{self.count}"))

    def _add(self, one: Message) -> None:
        self.top = one.place
        self.entries = [*self.entries, one][-self.size :]
        self.bus.append(one)

    def lose(self) -> None:
        """The bus loses its oldest message."""
        del self.bus[:1]

    def double(self) -> None:
        """The bus brings its oldest message, and will bring it again."""
        if self.bus:
            self._take(self.bus[0])

    def bring(self) -> None:
        if self.bus:
            self._take(self.bus.pop(0))

    def late(self) -> None:
        """The bus brings its oldest message last."""
        if self.bus:
            self.bus.append(self.bus.pop(0))

    def _take(self, one: Message) -> None:
        if self.one.take(one):
            assert one.event is not None
            self.given.append(one.event)

    def head(self) -> None:
        """The top is told, behind all that the bus still brings."""
        while self.bus:
            self.bring()
        self.given += self.one.head(self.top).events

    def ask(self) -> None:
        """A read is answered by the server, and is under way."""
        if self.one.reading and self.asked is None:
            self.asked = self._found(), self.one.doubts

    def _found(self) -> Read:
        since = self.one.place
        if since is None:
            return Read(self.top)
        return Read(self.top, [e for e in self.entries if e.place.offset >= since.offset][:2])

    def answer(self) -> None:
        if self.asked is not None:
            (found, doubts), self.asked = self.asked, None
            verdict = self.one.read(found, doubts)
            self.given += verdict.events
            if verdict.forked and verdict.forked == self.top.epoch:
                self.before = (self.top, self.entries)
                self.count += 1
                self.entries = []
                self.top = self.top._replace(epoch=f"f{self.count}")
                self.bus.append(Message(self.top._replace(uid=b""), None))

    def fail_over(self) -> None:
        """The stream loses its last two, and all connections end."""
        for _ in range(2):
            if len(self.entries) > 1:
                self.entries.pop()
                self.top = self.entries[-1].place
        self.cut()

    def fail_over_again(self) -> None:
        """The end of an epoch is lost as well."""
        if self.before is not None:
            self.top, self.entries = self.before
        self.cut()

    def cut(self) -> None:
        self.bus.clear()
        self.asked = None
        self.one.cut_off()

    def evict(self) -> None:
        self.entries, self.top = [], NO_STREAM

    def settle(self) -> None:
        """No more faults: two position checks, and the stream is read while it is in doubt."""
        for _ in range(2):
            self.answer()
            self.head()
            for _ in range(100):
                if self.one.reading:
                    self.ask()
                    self.answer()
                while self.bus:
                    self.bring()
            assert not self.one.reading


ACTS = ["publish", "publish", "bring", "bring", "lose", "double", "late"]
ACTS += ["head", "ask", "answer", "fail_over", "fail_over_again", "cut", "evict"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(ACTS), max_size=60))
def test_any_order_of_faults(acts: list[str]) -> None:
    """Each offset comes once and in order, or a rupture; at the end the place is the top."""
    world = World()
    world.head()
    for act in acts:
        getattr(world, act)()
    world.settle()
    assert world.one.place == world.top
    last: Publication | None = None
    tail: dict[int, bytes] = {}
    for event in world.given:
        if isinstance(event, Rupture):
            last, tail = None, {}
            continue
        assert isinstance(event, Publication)
        if last is not None:
            assert (event.offset, event.epoch) == (last.offset + 1, last.epoch)
        last = event
        tail[event.offset] = event.data
    for place, entry in world.entries:
        assert entry is not None
        assert tail.get(place.offset, entry.data) == entry.data
