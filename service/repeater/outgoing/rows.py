"""A row that a transaction has published, as the node takes it from the database."""

from __future__ import annotations

from typing import Final

import msgspec

from repeater.causes import Cause, Why
from repeater.clients.channel_operations import VERSION_WRONG
from repeater.errors import ErrorCode, ReplyError
from repeater.postgres.pipe import Row
from repeater.publication import Publication

_TAGS_WRONG: Final = Why(Cause.REQUEST, "tags: must be an object of texts")
_tags = msgspec.json.Decoder(dict[str, str])


class OutgoingRow(msgspec.Struct, frozen=True):
    """One row of `repeater.outgoing`."""

    id: int
    name: str
    """Names the row in the engine: its number and its moment. A number can be given again, after a
    backup was put back; a moment cannot."""
    channel: str
    size: int
    """The bytes of all its texts."""
    data: bytes | None
    """JSON text; None if the row is larger than what was asked for. Then the channel is cut."""
    key: str
    """The idempotency key; empty without one."""
    version: bytes | None
    version_epoch: str
    tags: bytes | None
    missed: bool
    """Whether an earlier look at the table must have given it."""

    def publication(self, largest: int) -> Publication:
        """The publication that the row means.

        Raises:
            ReplyError: it can never be published: larger than `largest` bytes, tags that are no
                texts, or a version that is no number.
        """
        if self.data is None:
            text = f"{self.size} bytes are more than body_limit allows ({largest})"
            raise ReplyError(ErrorCode.LIMIT_EXCEEDED, why=Why(Cause.LIMIT, text))
        return Publication(
            self.channel,
            self.data,
            tags=_tags_of(self.tags),
            version=_version_of(self.version),
            version_epoch=self.version_epoch,
        )


def row_of(values: Row) -> OutgoingRow:
    """Read one row of `repeater.take`."""
    number, at, channel, data, size, key, version, epoch, tags, missed, _now_seen = values
    assert number is not None
    assert at is not None
    assert channel is not None
    assert size is not None
    return OutgoingRow(
        int(number),
        f"{number.decode()}-{at.decode()}",
        channel.decode(),
        int(size),
        data,
        (key or b"").decode(),
        version,
        (epoch or b"").decode(),
        tags,
        missed == b"t",
    )


def _tags_of(text: bytes | None) -> dict[str, str] | None:
    if text is None:
        return None
    try:
        return _tags.decode(text) or None
    except msgspec.DecodeError:  # `ValidationError` too
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_TAGS_WRONG) from None


def _version_of(text: bytes | None) -> int:
    try:
        return int(text or 0)
    except ValueError:  # `numeric` also has NaN
        raise ReplyError(ErrorCode.BAD_REQUEST, why=VERSION_WRONG) from None
