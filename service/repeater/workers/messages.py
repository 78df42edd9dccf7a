"""The messages of the link, in both directions.

Each is an array with its tag first. Arrays only grow at the end, and what is added has a default,
so two releases whose `VERSION` is the same understand each other. A call with a `serial` gets one
answer with the same serial.
"""

from __future__ import annotations

from typing import Final

import msgspec

from repeater.access.grants import Denial
from repeater.backend.contract import EventStatistics
from repeater.brokers.contract import BrokerStatistics
from repeater.workers.values import CallerRow, EventRow, InfoRow, PublicationRow

VERSION: Final = 1
"""Changes when two releases do not understand each other."""


class Message(msgspec.Struct, array_like=True, frozen=True):
    """The base of all messages."""


# From a worker to its supervisor.


class Submit(Message, frozen=True, tag=1):
    """`Broker.submit`, with the options of history; answered by `Position` or `Done`."""

    serial: int
    channel: str
    data: bytes
    history_size: int
    history_ttl: float
    history_meta_ttl: float
    idempotency_key: str
    skip_history: bool
    tags: dict[str, str] | None
    info: InfoRow | None
    delta: bool
    version: int
    version_epoch: str


class Announce(Message, frozen=True, tag=2):
    """`Broker.announce`; answered by `Done`, so that the worker knows what is under way."""

    serial: int
    channel: str
    info: InfoRow
    joined: bool


class Hold(Message, frozen=True, tag=3):
    """`Broker.hold`; answered by `Done`, and the channel's events come behind that."""

    serial: int
    channel: str


class Release(Message, frozen=True, tag=4):
    """`Broker.release`; not answered."""

    channel: str


class ReadHistory(Message, frozen=True, tag=5):
    """`Broker.history`; answered by `Page`. Without a position `since_offset` is -1."""

    serial: int
    channel: str
    history_size: int
    history_ttl: float
    history_meta_ttl: float
    since_offset: int
    since_epoch: str
    limit: int | None
    reverse: bool


class RemoveHistory(Message, frozen=True, tag=6):
    """`Broker.remove_history`; answered by `Done`."""

    serial: int
    channel: str


class AddMember(Message, frozen=True, tag=7):
    """`PresenceStore.add`; answered by `Done`."""

    serial: int
    channel: str
    info: InfoRow


class RemoveMember(Message, frozen=True, tag=8):
    """`PresenceStore.remove`; answered by `Done`."""

    serial: int
    channel: str
    client: str


class ReadMembers(Message, frozen=True, tag=9):
    """`PresenceStore.members`; answered by `Members`."""

    serial: int
    channel: str


class CountMembers(Message, frozen=True, tag=10):
    """`PresenceStore.count`; answered by `Counts`."""

    serial: int
    channel: str


class LoadDenials(Message, frozen=True, tag=11):
    """`DenialStore.load`; answered by `Denials`."""

    serial: int


class SaveDenial(Message, frozen=True, tag=12):
    """`DenialStore.save`; answered by `Done` when the other workers have applied it."""

    serial: int
    denial: Denial


class SweepDenials(Message, frozen=True, tag=13):
    """`DenialStore.sweep`; answered by `Done`."""

    serial: int
    now: int


class DenialApplied(Message, frozen=True, tag=14):
    """The answer to `ApplyDenial`."""

    number: int


class ClientConnected(Message, frozen=True, tag=15):
    """`Events.connected`; not answered, as all of `Events`."""

    caller: CallerRow


class ClientDisconnected(Message, frozen=True, tag=16):
    """`Events.disconnected`."""

    caller: CallerRow
    code: int
    reason: str


class ClientSubscribed(Message, frozen=True, tag=17):
    """`Events.subscribed`."""

    caller: CallerRow
    channel: str


class ClientUnsubscribed(Message, frozen=True, tag=18):
    """`Events.unsubscribed`."""

    caller: CallerRow
    channel: str
    code: int
    reason: str


class Taken(Message, frozen=True, tag=19):
    """The worker's intake has taken events that weigh so much: so many more may be sent."""

    weight: int


class WorkerBeat(Message, frozen=True, tag=20):
    """Once a second: the worker's loop runs."""


Up = (
    Submit
    | Announce
    | Hold
    | Release
    | ReadHistory
    | RemoveHistory
    | AddMember
    | RemoveMember
    | ReadMembers
    | CountMembers
    | LoadDenials
    | SaveDenial
    | SweepDenials
    | DenialApplied
    | ClientConnected
    | ClientDisconnected
    | ClientSubscribed
    | ClientUnsubscribed
    | Taken
    | WorkerBeat
)


# From a supervisor to its worker.


class Hello(Message, frozen=True, tag=0):
    """The supervisor's first message. Its first fields are the same in all versions."""

    version: int
    release: str
    number: int


class Position(Message, frozen=True, tag=1):
    """A publication's place in its stream."""

    serial: int
    offset: int
    epoch: str


class Done(Message, frozen=True, tag=2):
    """The call was carried out, and its value is None."""

    serial: int


class Failed(Message, frozen=True, tag=3):
    """A `BrokerError`."""

    serial: int
    reason: str


class Refused(Message, frozen=True, tag=4):
    """A `ReplyError`; with a message, an `ApplicationError` of this number."""

    serial: int
    number: int
    message: str = ""
    temporary: bool = False


class Page(Message, frozen=True, tag=5):
    """Publications of a stream and its top."""

    serial: int
    publications: list[PublicationRow]
    offset: int
    epoch: str


class Members(Message, frozen=True, tag=6):
    """Who is in a channel."""

    serial: int
    infos: list[InfoRow]


class Counts(Message, frozen=True, tag=7):
    """How many connections and users are in a channel."""

    serial: int
    clients: int
    users: int


class Denials(Message, frozen=True, tag=8):
    """All denials that are kept."""

    serial: int
    denials: list[Denial]


class ApplyDenial(Message, frozen=True, tag=9):
    """Another worker saved this denial; answered by `DenialApplied`."""

    number: int
    denial: Denial


class SupervisorBeat(Message, frozen=True, tag=10):
    """Once a second: the supervisor's loop runs, and what the worker shows of it."""

    outage: str
    broker: BrokerStatistics
    events: EventStatistics | None


Down = (
    Hello
    | Position
    | Done
    | Failed
    | Refused
    | Page
    | Members
    | Counts
    | Denials
    | ApplyDenial
    | SupervisorBeat
)


class UpFrame(msgspec.Struct, array_like=True, frozen=True):
    """The body of a worker's frame."""

    messages: list[Up]


class DownFrame(msgspec.Struct, array_like=True, frozen=True):
    """The body of a supervisor's frame."""

    messages: list[Down]
    events: list[EventRow]


encode: Final = msgspec.msgpack.Encoder().encode
"""The bytes of one message, or of one row of an event, for `frames.frame`."""
read_up: Final = msgspec.msgpack.Decoder(UpFrame).decode
read_down: Final = msgspec.msgpack.Decoder(DownFrame).decode
