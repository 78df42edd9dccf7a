"""The messages of a supervisor to its worker: answers, questions, and what workers must know."""

from __future__ import annotations

from typing import Final

import msgspec

from repeater.access.grants import Denial
from repeater.backend.contract import EventStatistics
from repeater.brokers.contract import BrokerStatistics
from repeater.brokers.control import Member, Question
from repeater.workers.messages import Message
from repeater.workers.values import AnswerRow, EventRow, InfoRow, PublicationRow


class Hello(Message, frozen=True, tag=0):
    """The supervisor's first message. Its first fields are the same in all versions."""

    version: int
    release: str
    number: int
    server: str


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


class Answered(Message, frozen=True, tag=11):
    """A member's or the server's answer."""

    serial: int
    answer: AnswerRow


class Unknown(Message, frozen=True, tag=12):
    """Nobody was asked: the member is not there."""

    serial: int


class AllAnswered(Message, frozen=True, tag=13):
    """The answers of all other members."""

    serial: int
    answers: list[tuple[Member, AnswerRow]]


class MembersNow(Message, frozen=True, tag=14):
    """The members that run, in the order in which they joined."""

    members: list[Member]


class CarryOut(Message, frozen=True, tag=15):
    """A member's or the server's question; answered by `CarriedOut`."""

    number: int
    asker: Member
    question: Question


class Rows(Message, frozen=True, tag=16):
    """The names of the rows that are remembered."""

    serial: int
    names: list[str]


class Deposed(Message, frozen=True, tag=17):
    """A `DeposedError`."""

    serial: int
    term: int


class Behind(Message, frozen=True, tag=18):
    """An `AfterError`."""

    serial: int


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
    | Answered
    | Unknown
    | AllAnswered
    | MembersNow
    | CarryOut
    | Rows
    | Deposed
    | Behind
)


class DownFrame(msgspec.Struct, array_like=True, frozen=True):
    """The body of a supervisor's frame."""

    messages: list[Down]
    events: list[EventRow]


read: Final = msgspec.msgpack.Decoder(DownFrame).decode
"""The messages and events of a frame's body."""
