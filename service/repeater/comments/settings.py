"""The application's settings, added to the server's. Imports none of its libraries."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar, Final

import msgspec
from pydantic import BeforeValidator, SecretStr

from repeater.comments.options import (
    CACHES,
    CHANNEL,
    DATABASES,
    PING_INTERVAL,
    CommentsOptions,
    has_host,
)
from repeater.config import outgoing
from repeater.config.errors import Mistake
from repeater.config.fields import Secret, unless_empty
from repeater.config.settings import Settings
from repeater.options import NodeOptions

INSTALL: Final = "pip install 'repeater-server[comments]'"

# Libraries of the extra. Its third library, itsdangerous, is always installed with Quart.
_LIBRARIES: Final = ("sqlalchemy", "argon2")
_SHORTEST_SECRET: Final = 16  # characters


class CommentsSettings(Settings):
    """The server's settings and those of the comments application."""

    title: ClassVar[str] = "Comments application"

    comments: Annotated[bool | None, BeforeValidator(unless_empty)] = None
    """Whether the comments application runs, with its channel `comments` open to its pages. By
    default it runs in development mode, if the extra `comments` is installed."""

    comments_secret_key: Secret = None
    """Signs the application's cookies; 16 characters or more. Required outside development mode."""

    comments_database_url: Secret = None
    """`postgresql+psycopg://user:password@host/name`. Without it, SQLite in `data_dir`. Comments in
    a PostgreSQL are published by their own transaction, which needs the schema of
    `repeater postgres migrate` (docs/postgres.md). This database is then `outbox`, if that is not
    set. If both are set as URLs, they name the same host, port and database."""

    comments_cache_url: Secret = None
    """`redis://host/0` or `valkey://host/0`. Without it, the cache is in memory."""

    @property
    def comments_on(self) -> bool:
        """Whether the application runs."""
        return self.dev and is_installed() if self.comments is None else self.comments

    def comments_options(self) -> CommentsOptions:
        """The options that the application is started with."""
        return CommentsOptions(
            data_dir=Path(self.data_dir),
            secret_key=_clear(self.comments_secret_key),
            database_url=_clear(self.comments_database_url),
            cache_url=_clear(self.comments_cache_url),
        )

    @property
    def outbox_setting(self) -> str:
        """As `OutgoingSettings.outbox_setting`; the comments' database is one as well."""
        own = self.outbox is None and self._publishing_url()
        return "comments_database_url" if own else super().outbox_setting

    def outbox_url(self) -> str:
        """As `OutgoingSettings.outbox_url`; without `outbox`, a PostgreSQL of the comments."""
        return super().outbox_url() or self._publishing_url()

    def schema_url(self) -> str:
        """As `OutgoingSettings.schema_url`; the comments need not run."""
        return super().schema_url() or self._postgresql_url()

    def _publishing_url(self) -> str:
        """The PostgreSQL of comments that run; else empty."""
        return self._postgresql_url() if self.comments_on else ""

    def _postgresql_url(self) -> str:
        """The comments' PostgreSQL, as libpq takes it; empty where they have none.

        Without PostgreSQL's client it is returned as it is given: the server does not start then,
        and says which library it misses (`outgoing_mistakes`).
        """
        url = _clear(self.comments_database_url)
        scheme = url.partition("://")[0].partition("+")[0]
        if scheme != "postgresql" or not is_installed():
            return ""
        if not outgoing.is_installed():
            return url
        from repeater.comments.database_url import libpq_url  # its libraries are optional

        return libpq_url(url)

    def node_options(self) -> NodeOptions:
        """As `Settings.node_options`, with the needs of the pages.

        Their channel is open, and a ping comes at least every 20 seconds.
        """
        options = super().node_options()
        if not self.comments_on:
            return options
        interval = options.ping_interval
        if options.pong_timeout < PING_INTERVAL:
            interval = min(interval, PING_INTERVAL)
        return msgspec.structs.replace(
            options,
            default_channel=options.default_channel or CHANNEL,
            ping_interval=interval,
            public_channels=options.public_channels | {CHANNEL},
        )

    def mistakes(self) -> Iterator[Mistake]:
        """As `Settings.mistakes`, and missing libraries, URLs of an unknown kind, a missing secret.

        Only in development mode may the secret be generated: servers behind one name must share it.
        """
        yield from super().mistakes()
        if not self.comments_on:
            return
        if not is_installed():
            yield Mistake(("comments",), f"the comments application is not installed: {INSTALL}")
        if not _begins_with(DATABASES, self.comments_database_url):
            text = "must begin with postgresql+psycopg:// or sqlite:///"
            yield Mistake(("comments_database_url",), text)
        if not _begins_with(CACHES, self.comments_cache_url):
            text = "must begin with redis:// or valkey:// (with TLS, rediss:// or valkeys://)"
            yield Mistake(("comments_cache_url",), text)
        elif self.comments_cache_url and not has_host(_clear(self.comments_cache_url)):
            yield Mistake(("comments_cache_url",), "needs a host, and a port up to 65535 if any")
        if self._is_heard_elsewhere():
            text = "is another database than that of comments_database_url, which publishes too"
            yield Mistake(("outbox",), text)
        given = _clear(self.comments_secret_key)
        if len(given) < _SHORTEST_SECRET and (given or not self.dev):
            yield Mistake(
                ("comments_secret_key",),
                "the comments application needs a secret of 16 characters or more",
            )

    def _is_heard_elsewhere(self) -> bool:
        """Whether the server would not hear what the comments' database publishes."""
        if self.outbox is None or not outgoing.is_installed():
            return False
        if not (url := self._publishing_url()):
            return False
        from repeater.comments.database_url import are_different

        return are_different(url, self.outbox.get_secret_value())


@functools.cache
def is_installed() -> bool:
    """Whether the libraries of the extra `comments` can be imported."""
    try:
        return all(find_spec(name) is not None for name in _LIBRARIES)
    except ImportError:
        return False


def _begins_with(schemes: Collection[str], url: SecretStr | None) -> bool:
    """Whether the URL has one of the schemes, or is not set. The scheme of `a+b://` is `a`."""
    scheme, colon, _ = _clear(url).partition("://")
    return not url or (bool(colon) and scheme.partition("+")[0] in schemes)


def _clear(secret: SecretStr | None) -> str:
    return "" if secret is None else secret.get_secret_value()
