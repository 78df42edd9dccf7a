"""The messages of a worker to its supervisor: calls, answers, and what its clients do."""

from __future__ import annotations

from typing import Final

import msgspec

from repeater.access.grants import Denial
from repeater.brokers.control import Member, Question
from repeater.brokers.source_rows import SourceRow
from repeater.workers.messages import Message
from repeater.workers.values import AnswerRow, CallerRow, InfoRow


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
    binary: bool = False
    row: SourceRow | None = None


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


class Join(Message, frozen=True, tag=21):
    """`Control.run` begins; answered by `Done` when the other workers are told."""

    serial: int
    member: Member


class Leave(Message, frozen=True, tag=22):
    """`Control.run` ends; not answered."""


class Ask(Message, frozen=True, tag=23):
    """`Control.ask`; answered by `Answered`, or by `Unknown` if there is no such member."""

    serial: int
    member: str
    question: Question


class AskOthers(Message, frozen=True, tag=24):
    """`Control.ask_others`; answered by `AllAnswered`."""

    serial: int
    question: Question


class Tell(Message, frozen=True, tag=25):
    """`Control.tell`; not answered."""

    question: Question


class CarriedOut(Message, frozen=True, tag=26):
    """The answer to `CarryOut`."""

    number: int
    answer: AnswerRow


class Mark(Message, frozen=True, tag=27):
    """Answered by a `MarkRow` behind all events that were handed on until now."""

    serial: int


class KnownRows(Message, frozen=True, tag=28):
    """`Broker.known_rows`; answered by `Rows`."""

    serial: int
    source: str


class ForgetRows(Message, frozen=True, tag=29):
    """`Broker.forget_rows`; answered by `Done`."""

    serial: int
    source: str
    names: list[str]


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
    | Join
    | Leave
    | Ask
    | AskOthers
    | Tell
    | CarriedOut
    | Mark
    | KnownRows
    | ForgetRows
)


class UpFrame(msgspec.Struct, array_like=True, frozen=True):
    """The body of a worker's frame."""

    messages: list[Up]


read: Final = msgspec.msgpack.Decoder(UpFrame).decode
"""The messages of a frame's body."""
