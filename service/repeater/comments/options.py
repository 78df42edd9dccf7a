"""The options of the application, and the error for a start that fails. Values only."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from repeater.config.extension import ExtensionError
from repeater.options import Options, SecretText

CHANNEL: Final = "comments"
"""The channel in which comments are published, and to which the pages subscribe."""

DATABASES: Final = ("sqlite", "postgresql")
CACHES: Final = ("redis", "rediss", "valkey", "valkeys")
"""The schemes that the URL of a database, or of a cache, may have."""

PING_INTERVAL: Final = 20.0
"""Most seconds between two pings to a page of the application."""


def has_host(url: str) -> bool:
    """Whether this is a URL with a host, and without a port that cannot be."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number, or the host's brackets do not close
        return False


class CommentsError(ExtensionError):
    """The application cannot start; the text is one line for the person who started it."""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """The size and the rate of a token bucket: `burst` at once, then `per_second`."""

    burst: int
    per_second: float


class CommentsOptions(Options, frozen=True, kw_only=True):
    """Stores and limits of the application. Times are seconds, lengths characters."""

    data_dir: Path
    """Directory of the SQLite file and, without `secret_key`, of the secret. Made if missing."""

    secret_key: SecretText = ""
    """Signs the identity cookie. If empty, a secret is made once, in the data directory."""

    database_url: SecretText = ""
    """SQLAlchemy's URL, `postgresql+psycopg://...`. Empty: SQLite in the data directory."""

    cache_url: SecretText = ""
    """`redis://` or `valkey://`. Empty: the cache is in this process's memory."""

    cache_ttl: float = 10.0
    """Longest time that a list of comments stays in the cache, without a new comment."""

    cache_timeout: float = 0.25
    """Longest time of one call to the cache. A request waits this long if the cache is down."""

    identity_ttl: float = 2_592_000.0
    """How long a sign-in lasts (30 days), unless the user signs out."""

    comment_limit: int = 2_000
    page_default: int = 50
    page_limit: int = 500
    """Longest comment; comments in one answer of `/api/comments` without `limit`, and at most."""

    form_limit: int = 32_768
    """Longest form in bytes; a longer form is refused before its body is read. The longest comment,
    URL-encoded in any script, has 24,005 bytes. A form that does not announce its length has the
    limit of every request's body."""

    database_threads: int = 4
    password_threads: int = 2
    """Most blocking calls at once. Two sign-ins hash for about 50 ms, each on its own core, while
    the event loop goes on."""

    thread_queue: int = 256
    """Most calls that wait for a thread of each kind; above it a request is answered with 503."""

    sign_up_rate: Rate = Rate(burst=30, per_second=0.2)
    sign_in_rate: Rate = Rate(burst=60, per_second=1.0)
    comment_address_rate: Rate = Rate(burst=120, per_second=5.0)
    """Limits by the address of the peer. They are generous: a whole office may share one."""

    account_rate: Rate = Rate(burst=10, per_second=0.1)
    account_total_rate: Rate = Rate(burst=100, per_second=0.1)
    """Limits of wrong passwords for one account: from one address, or from one browser in which
    somebody signed in to it before; and from all other addresses together."""

    account_sessions: int = 20
    """Most sign-ins of one account that last at the same time; one more ends the oldest."""

    comment_rate: Rate = Rate(burst=20, per_second=0.5)
    """Limit of comments by account."""

    rate_memory: int = 10_000
    """Most addresses or accounts that a limit remembers; the least recently used is forgotten."""
