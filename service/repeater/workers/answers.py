"""The answers of an engine as messages to a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.brokers.source_rows import AfterError, DeposedError
from repeater.errors import ApplicationError, BrokerError, ReplyError
from repeater.workers import down
from repeater.workers.messages import Message
from repeater.workers.values import info_row, publication_row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from repeater.access.grants import Denial
    from repeater.brokers.contract import Page
    from repeater.publication import ClientInfo, StreamPosition


def error(serial: int, error: BrokerError | ReplyError) -> Message:
    """That the engine failed or refused, with all that it said."""
    if isinstance(error, ApplicationError):
        return down.Refused(serial, error.number, error.message, error.temporary)
    if isinstance(error, ReplyError):
        return down.Refused(serial, error.code)
    if isinstance(error, DeposedError):
        return down.Deposed(serial, error.term)
    if isinstance(error, AfterError):
        return down.Behind(serial)
    return down.Failed(serial, str(error))


def position(serial: int, position: StreamPosition | None) -> Message:
    """A publication's place, or that it has none."""
    if position is None:
        return down.Done(serial)
    return down.Position(serial, position.offset, position.epoch)


def done(serial: int, _nothing: None) -> Message:
    """That something was carried out."""
    return down.Done(serial)


def rows(serial: int, names: Sequence[str]) -> Message:
    """The rows that are remembered."""
    return down.Rows(serial, list(names))


def page(serial: int, page: Page) -> Message:
    """Publications and the top of a stream."""
    found, top = page
    return down.Page(serial, [publication_row(one) for one in found], top.offset, top.epoch)


def members(serial: int, members: Mapping[str, ClientInfo]) -> Message:
    """Who is in a channel."""
    return down.Members(serial, [info_row(one) for one in members.values()])


def counts(serial: int, counts: tuple[int, int]) -> Message:
    """How many are in a channel."""
    return down.Counts(serial, *counts)


def denials(serial: int, denials: Sequence[Denial]) -> Message:
    """What is kept of blocks and revocations."""
    return down.Denials(serial, list(denials))
