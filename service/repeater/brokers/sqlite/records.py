"""The rows of the file as values, and a publication as bytes.

Pure values: no SQL, no file, no clock. Times are Unix seconds, as everything that is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from repeater.publication import ClientInfo, Publication, StreamPosition

UINT64_DIGITS: Final = 20
"""SQLite's integers have 63 bits and a sign, so a version is a text of so many digits."""


class StreamRecord(msgspec.Struct, frozen=True):
    """A stream without its publications.

    The row is written when the stream begins, when its last publications go, and when its lifetimes
    change. In between, `top`, `version` and `published` follow from the publications.
    """

    id: int
    channel: str
    epoch: str
    top: int
    version: int
    version_epoch: str
    published: float
    history_ttl: float
    meta_ttl: float


StoredPublication = tuple[int, int, int, bytes | bytearray]
"""A publication in its place: row, stream, offset, body. Rows are in the order of their commits,
over all streams. A plain tuple, because SQLite takes and gives it as it is."""


class StoredResult(msgspec.Struct, frozen=True):
    """What the first publish with an idempotency key returned."""

    channel: str
    key: str
    position: StreamPosition | None
    until: float


class StoredRow(msgspec.Struct, frozen=True):
    """A row of another database that is published."""

    source: str
    name: str
    position: StreamPosition | None


class Changes(msgspec.Struct):
    """What one transaction changes, in the order of these fields.

    A result that was forgotten may be kept anew in the same transaction, and the row of a stream
    replaces the one that its channel had.
    """

    forgotten_results: list[tuple[str, str]] = []
    streams: list[StreamRecord] = []
    """New and changed ones."""
    publications: list[StoredPublication] = []
    results: list[StoredResult] = []
    freed: list[int] = []
    """The ids of publications that are not kept any more."""
    forgotten_streams: list[int] = []
    meta: dict[str, str] = {}
    terms: dict[str, int] = {}
    """By the source of rows."""
    forgotten_rows: list[tuple[str, str]] = []
    """Source and name; removed before `rows` are added."""
    rows: list[StoredRow] = []

    def __bool__(self) -> bool:
        return any(
            (
                self.streams,
                self.publications,
                self.results,
                self.freed,
                self.forgotten_streams,
                self.forgotten_results,
                self.meta,
                self.terms,
                self.forgotten_rows,
                self.rows,
            )
        )


class _Body(msgspec.Struct, array_like=True, frozen=True):
    """What the file has of a publication beside its place. New fields are added at the end."""

    data: bytes
    time: int
    tags: dict[str, str] | None
    info: tuple[str, str, bytes | None, bytes | None] | None
    delta: bool
    version: int
    version_epoch: str
    binary: bool = False
    """Since format 2: bodies of format 1 end before it."""


_encode_into = msgspec.msgpack.Encoder().encode_into
_decode = msgspec.msgpack.Decoder(_Body).decode


def body_of(publication: Publication) -> bytearray:
    """The bytes of a publication for its row.

    No `bytes`: Python looks for an adapter of each of them, for longer than SQLite takes for a row.
    """
    info = publication.info
    body = bytearray()
    _encode_into(
        (
            bytes(publication.data),
            publication.time,
            publication.tags,
            info if info is None else _info_row(info),
            publication.delta,
            publication.version,
            publication.version_epoch,
            publication.binary,
        ),
        body,
    )
    return body


def publication_of(
    channel: str,
    epoch: str,
    offset: int,
    body: bytes | bytearray,
    times: dict[int, int] | None = None,
) -> Publication:
    """The publication of a row, as it was. Those with equal times share the one in `times`.

    Raises:
        msgspec.DecodeError: the bytes are not a publication's.
    """
    found = _decode(body)
    time = found.time if times is None else times.setdefault(found.time, found.time)
    return Publication(
        channel,
        found.data,  # No `JSONText`: its type proves a check to publishers, and costs a copy here.
        offset,
        epoch,
        found.tags,
        None if found.info is None else _info(found.info),
        found.delta,
        found.version,
        found.version_epoch,
        time,
        found.binary,
    )


def _info_row(info: ClientInfo) -> Sequence[object]:
    return (info.user, info.client, _bytes(info.conn_info), _bytes(info.chan_info))


def _bytes(text: msgspec.Raw | None) -> bytes | None:
    return None if text is None else bytes(text)


def _info(row: tuple[str, str, bytes | None, bytes | None]) -> ClientInfo:
    user, client, conn_info, chan_info = row
    return ClientInfo(user, client, _raw(conn_info), _raw(chan_info))


def _raw(text: bytes | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text)
