"""The setting of the database whose transactions publish.

It stands in the outermost table of the file. `Settings` inherits it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import ClassVar, Final

from pydantic_settings import BaseSettings

from repeater.config.errors import Mistake
from repeater.config.fields import Secret

INSTALL: Final = "pip install 'repeater-server[postgres]'"


class OutgoingSettings(BaseSettings):
    """Lives inside `Settings`."""

    title: ClassVar[str] = "Transactions that publish"

    outbox: Secret = None
    """The PostgreSQL whose transactions publish with `SELECT repeater.publish(...)`
    (docs/postgres.md): `postgresql://user:password@host/name`, or a connection string of libpq.
    It needs the extra `postgres` and the schema of `repeater postgres migrate`. All servers of an
    application have the same; one of them takes what is published."""

    @property
    def outbox_setting(self) -> str:
        """The setting that says which database that is."""
        return "outbox"

    def outbox_url(self) -> str:
        """The database whose transactions publish, as libpq takes it; empty without one."""
        return "" if self.outbox is None else self.outbox.get_secret_value()

    def schema_url(self) -> str:
        """The database for which `repeater postgres` makes the schema; empty without one."""
        return self.outbox_url()

    def outgoing_mistakes(self) -> Iterator[Mistake]:
        """A database that cannot be one, and what it needs."""
        if not (url := self.outbox_url()):
            return
        where = (self.outbox_setting,)
        if not is_installed():
            yield Mistake(where, f"PostgreSQL's client is not installed: {INSTALL}")
        elif not _is_address(url):
            text = "must be postgresql://user:password@host/name, or a connection string of libpq"
            spelled = "in a URL, the @, / and % of a password are %40, %2F and %25"
            yield Mistake(where, f"{text}; {spelled}")


@cache
def is_installed() -> bool:
    """Whether the library of the extra `postgres` can be imported."""
    try:
        return find_spec("psycopg") is not None
    except ImportError:
        return False


def _is_address(url: str) -> bool:
    from repeater.postgres.url import url_parts  # its library may not be installed

    try:
        url_parts(url)
    except ValueError:
        return False
    return True
