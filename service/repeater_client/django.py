"""Publish inside a transaction of Django: what is rolled back is not published.

Both functions are one statement on Django's own connection, so they need no
`transaction.on_commit`: Repeater sees the row after the commit, or never. Outside of `atomic` each
call is a transaction of its own. Nothing here begins or ends a transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import DEFAULT_DB_ALIAS, NotSupportedError, connections

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

_PUBLISH = """
    SELECT repeater.publish(
        channel => %s::text, data => %s::jsonb, key => %s::text, version => %s::numeric,
        version_epoch => %s::text, tags => %s::jsonb
    )
"""
_PUBLISH_MANY = "SELECT repeater.publish_many(channels => %s::text[], datas => %s::jsonb[])"


def publish(
    channel: str,
    data: Any,
    *,
    key: str | None = None,
    version: int | None = None,
    version_epoch: str | None = None,
    tags: Mapping[str, str] | None = None,
    using: str | None = None,
) -> int:
    """Publish data to a channel when the current transaction commits; the number of its row.

    Two calls of one transaction are published in their order. Repeater checks the channel and the
    size only later: what it refuses is in the table `repeater.refused`, with the reason.

    Args:
        channel: where to, for example `"orders:42"`.
        data: anything that Django's JSON encoder writes, so dates, decimals and UUIDs too.
        key: names the publication; another one with the same key, within Repeater's
            `idempotency_ttl`, is not published again.
        version: of the data; one that is not higher than the channel's last is not published.
        version_epoch: versions of different epochs are not compared.
        tags: what subscribers may filter by.
        using: the alias of a database of `DATABASES`; the default one without it.

    Raises:
        TypeError, ValueError: the data cannot be JSON, NaN for example; nothing was sent.
        django.db.NotSupportedError: the database is not PostgreSQL.
        django.db.DatabaseError: the database refuses. The schema is missing, the role may not
            publish, or the data has a NUL character, which jsonb cannot hold. As after every failed
            statement, the transaction can only be rolled back, at least to a savepoint.
    """
    connection = postgresql(using)
    given = (channel, _json(data), key, version, version_epoch, _tags(tags))
    with connection.cursor() as cursor:
        cursor.execute(_PUBLISH, given)
        return int(cursor.fetchone()[0])


def publish_many(pairs: Iterable[tuple[str, Any]], *, using: str | None = None) -> list[int]:
    """Publish pairs of channel and data in this order, by one statement; their rows' numbers.

    Raises what `publish` raises; then none of them is published.
    """
    connection = postgresql(using)
    written = [(channel, _json(data)) for channel, data in pairs]
    if not written:
        return []
    channels, datas = zip(*written, strict=True)
    with connection.cursor() as cursor:
        cursor.execute(_PUBLISH_MANY, (list(channels), list(datas)))
        return list(cursor.fetchone()[0])


def postgresql(using: str | None) -> BaseDatabaseWrapper:
    """Django's connection with this alias, which is one of PostgreSQL.

    Raises:
        django.db.NotSupportedError: it is one of another database.
    """
    connection = connections[using or DEFAULT_DB_ALIAS]
    if connection.vendor != "postgresql":
        raise NotSupportedError(
            f"the database {connection.alias!r} is {connection.vendor}: publishing inside a"
            " transaction needs PostgreSQL with the schema repeater"
        )
    return connection


def _json(data: Any) -> str:
    # PostgreSQL has no NaN in its JSON; an error of ours leaves the transaction usable.
    return json.dumps(data, cls=DjangoJSONEncoder, allow_nan=False)


def _tags(tags: Mapping[str, str] | None) -> str | None:
    return None if tags is None else json.dumps(dict(tags))
