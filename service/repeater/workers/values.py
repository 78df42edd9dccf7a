"""Values of other rooms as they cross the link: arrays without names, which only grow at the end.

JSON texts cross as bytes. The sender's type says that a text is valid (`JSONText`), and the peer is
a process of ours, so the receiver makes a `JSONText` again without a second parse. The bytes of a
binary publication stay bytes.
"""

from __future__ import annotations

import functools
from typing import Final

import msgspec

from repeater.access.grants import Caller
from repeater.errors import ApplicationError, BrokerError, ErrorCode, ReplyError
from repeater.json_text import JSONText
from repeater.options import ChannelOptions
from repeater.publication import Announcement, ClientInfo, Event, Publication, Rupture


class InfoRow(msgspec.Struct, array_like=True, frozen=True):
    """A `ClientInfo`."""

    user: str
    client: str
    conn_info: bytes | None
    chan_info: bytes | None


class CallerRow(msgspec.Struct, array_like=True, frozen=True):
    """A `Caller`."""

    client: str
    transport: str
    user: str
    meta: bytes
    headers: dict[str, str] | None
    party: str
    protocol: str = "json"


class PublicationRow(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """A `Publication`, with its weight if it is an event: the receiver need not weigh it again."""

    channel: str
    data: bytes
    offset: int
    epoch: str
    time: int
    weight: int
    delta: bool
    tags: dict[str, str] | None
    info: InfoRow | None
    version: int
    version_epoch: str
    binary: bool = False


class AnnouncementRow(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """An `Announcement`."""

    channel: str
    info: InfoRow
    joined: bool
    weight: int


class RuptureRow(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """A `Rupture`."""

    channel: str
    weight: int


class MarkRow(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """No event: the place among the events at which a `Mark` is answered."""

    serial: int
    weight: int = 0


class AnswerRow(msgspec.Struct, array_like=True, frozen=True):
    """The answer to a question of the control plane: bytes, or the error that took their place."""

    answer: bytes | None
    number: int = 0
    """The code of a `ReplyError`; 0 for a `BrokerError`."""
    text: str = ""
    """Of an `ApplicationError` or a `BrokerError`."""
    temporary: bool = False


EventRow = PublicationRow | AnnouncementRow | RuptureRow | MarkRow

_options_kept: Final = 1_024  # kinds of channel that all workers' settings have together, about


def row_of(event: Event, weight: int) -> PublicationRow | AnnouncementRow | RuptureRow:
    """An event that weighs so many bytes, as it crosses the link."""
    if type(event) is Publication:
        return publication_row(event, weight)
    if isinstance(event, Announcement):
        return AnnouncementRow(event.channel, info_row(event.info), event.joined, weight)
    return RuptureRow(event.channel, weight)


def event_of(row: PublicationRow | AnnouncementRow | RuptureRow) -> Event:
    """The event that crossed the link."""
    if type(row) is PublicationRow:
        return publication_of(row)
    if type(row) is AnnouncementRow:
        return Announcement(row.channel, info_of(row.info), row.joined)
    return Rupture(row.channel)


def publication_row(publication: Publication, weight: int = 0) -> PublicationRow:
    """A publication with its number; without a weight if it is no event but history."""
    info = publication.info
    return PublicationRow(
        publication.channel,
        bytes(publication.data),
        publication.offset,
        publication.epoch,
        publication.time,
        weight,
        publication.delta,
        publication.tags,
        None if info is None else info_row(info),
        publication.version,
        publication.version_epoch,
        publication.binary,
    )


def publication_of(row: PublicationRow) -> Publication:
    """The publication that crossed the link."""
    info = row.info
    return Publication(
        row.channel,
        row.data if row.binary else JSONText(row.data),
        row.offset,
        row.epoch,
        row.tags,
        None if info is None else info_of(info),
        row.delta,
        row.version,
        row.version_epoch,
        row.time,
        row.binary,
    )


def info_row(info: ClientInfo) -> InfoRow:
    """What others see of a client, as it crosses the link."""
    return InfoRow(info.user, info.client, _bytes(info.conn_info), _bytes(info.chan_info))


def info_of(row: InfoRow) -> ClientInfo:
    """What others see of a client."""
    return ClientInfo(row.user, row.client, _raw(row.conn_info), _raw(row.chan_info))


def _bytes(text: msgspec.Raw | None) -> bytes | None:
    return None if text is None else bytes(text)


def _raw(text: bytes | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text)


def caller_row(caller: Caller) -> CallerRow:
    """A connection, as it crosses the link."""
    headers = dict(caller.headers) if caller.headers else None
    return CallerRow(
        caller.client,
        caller.transport,
        caller.user,
        bytes(caller.meta),
        headers,
        caller.party,
        caller.protocol,
    )


def caller_of(row: CallerRow) -> Caller:
    """The connection that the application is told of."""
    return Caller(
        row.client,
        row.transport,
        row.user,
        JSONText(row.meta),
        row.headers or {},
        row.party,
        row.protocol,
    )


def answer_row(answer: bytes | ReplyError | BrokerError) -> AnswerRow:
    """An answer of the control plane, as it crosses the link."""
    if isinstance(answer, bytes):
        return AnswerRow(answer)
    if isinstance(answer, ApplicationError):
        return AnswerRow(None, answer.number, answer.message, answer.temporary)
    if isinstance(answer, ReplyError):
        return AnswerRow(None, answer.code)
    return AnswerRow(None, 0, str(answer))


def answer_of(row: AnswerRow) -> bytes | ReplyError | BrokerError:
    """The answer that crossed the link."""
    if row.answer is not None:
        return row.answer
    if not row.number:
        return BrokerError(row.text)
    return refusal_of(row.number, row.text, temporary=row.temporary)


def refusal_of(number: int, message: str, *, temporary: bool) -> ReplyError:
    """The error of this number; one with a message is an application's."""
    if message:
        return ApplicationError(number, message, temporary=temporary)
    return ReplyError(ErrorCode(number))


@functools.lru_cache(_options_kept)
def options_of(size: int, ttl: float, meta_ttl: float) -> ChannelOptions:
    """The options that a broker heeds: those of history. All others are the worker's own."""
    return ChannelOptions(history_size=size, history_ttl=ttl, history_meta_ttl=meta_ttl)
