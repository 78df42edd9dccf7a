"""What a test's transaction has published. Django's `TestCase` rolls it back, so nothing is sent.

It reads the table `repeater.outgoing`, which only the owner of the schema may. Django's test runner
makes the test's database, and with it the schema, as the role that the tests use.
"""

from __future__ import annotations

import json
from typing import Any

from django.db.transaction import TransactionManagementError

from repeater_client.django import postgresql

_PUBLISHED = """
    SELECT channel, data FROM repeater.outgoing
    WHERE xid = pg_current_xact_id_if_assigned() ORDER BY id
"""


def published(using: str | None = None) -> list[tuple[str, Any]]:
    """Channel and data of all that the current transaction has published so far, in order.

    What was rolled back to a savepoint is not in it; what `setUpTestData` published is. Data is as
    subscribers will parse it: a date is a text.

    Raises:
        TransactionManagementError: no transaction is open, so nothing could ever be found. Use
            `django.test.TestCase`, or `transaction.atomic()`.
        django.db.NotSupportedError: the database is not PostgreSQL.
        django.db.ProgrammingError: the schema is missing, or this role does not own it.
    """
    connection = postgresql(using)
    if connection.get_autocommit():
        raise TransactionManagementError(
            "published() shows what the open transaction has published, and none is open"
        )
    with connection.cursor() as cursor:
        cursor.execute(_PUBLISHED)
        return [(channel, json.loads(data)) for channel, data in cursor.fetchall()]
