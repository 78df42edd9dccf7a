"""What the application is started with, and its one start-up error. Values only."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from repeater.config.extension import ExtensionError
from repeater.options import Options, SecretText

CHANNEL: Final = "comments"
"""Where comments are published, and what the pages subscribe to."""

DATABASES: Final = ("sqlite", "postgresql")
CACHES: Final = ("redis", "rediss", "valkey", "valkeys")
"""What the address of a database, or of a cache, may begin with."""

PING_INTERVAL: Final = 20.0
"""Seconds at most between two pings to a page of the application."""


class CommentsError(ExtensionError):
    """The application can't start; the text is one line for whoever started it."""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """A token bucket: so many at once, then so many a second."""

    burst: int
    per_second: float


class CommentsOptions(Options, frozen=True, kw_only=True):
    """Where things are kept and how much is allowed. Times are seconds, lengths characters."""

    data_dir: Path
    """Holds the SQLite file and, without `secret_key`, the generated secret. Made if missing."""

    secret_key: SecretText = ""
    """Signs the identity cookie. Empty: generated once and kept in the data directory."""

    database_url: SecretText = ""
    """SQLAlchemy's URL, `postgresql+psycopg://...`. Empty: SQLite in the data directory."""

    cache_url: SecretText = ""
    """`redis://` or `valkey://`. Empty: the cache is in this process's memory."""

    cache_ttl: float = 10.0
    """How long a list of comments may be answered from the cache when nobody writes."""

    cache_timeout: float = 0.25
    """How long a call to the cache may take: what a dead one costs."""

    identity_ttl: float = 2_592_000.0
    """How long a sign-in lasts (30 days)."""

    comment_limit: int = 2_000
    page_default: int = 50
    page_limit: int = 500
    """Comments in one answer of `/api/comments`: without `limit`, and at most."""

    form_limit: int = 32_768
    """Longest form in bytes, refused before it is read; the longest comment, URL-encoded in any
    script, has 24,005. A form of unannounced length is bounded as every request's body is."""

    database_threads: int = 4
    password_threads: int = 2
    """Blocking calls at once. Two sign-ins hash for some 50 ms on a core each; the loop runs on."""

    thread_queue: int = 256
    """Calls waiting for each; past it a request is told to try later (503)."""

    sign_up_rate: Rate = Rate(burst=30, per_second=0.2)
    sign_in_rate: Rate = Rate(burst=60, per_second=1.0)
    comment_address_rate: Rate = Rate(burst=120, per_second=5.0)
    """By address of the peer; an office shares one, so these are generous."""

    account_rate: Rate = Rate(burst=10, per_second=0.1)
    """Sign-ins by account, right or wrong: what a guesser gets, wherever from."""

    comment_rate: Rate = Rate(burst=20, per_second=0.5)
    """Comments by account."""

    rate_memory: int = 10_000
    """Addresses or accounts remembered by each limit; past it the longest unseen is forgotten."""
