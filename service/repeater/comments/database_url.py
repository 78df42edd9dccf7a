"""The address of the comments' PostgreSQL, as SQLAlchemy has it and as libpq takes it.

Loaded only where the libraries of the application are installed.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlencode

from psycopg import Error, conninfo
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

_DRIVER: Final = "postgresql+psycopg"
_PORT: Final = "5432"
_SCHEMES: Final = ("postgresql://", "postgres://")


def libpq_url(url: str) -> str:
    """The URL that libpq takes for the database of SQLAlchemy's URL; empty if that is invalid.

    SQLAlchemy names the driver, may name a host again and again, and reads some characters in
    another way. So it takes the URL apart itself.
    """
    try:
        parsed = make_url(url).set(drivername=_DRIVER)
        _, given = parsed.get_dialect()().create_connect_args(parsed)
    except (ArgumentError, ValueError):  # the engine is not made either, and says why
        return ""
    return f"postgresql://?{urlencode(given, quote_via=quote, safe='')}"


def are_different(one: str, other: str) -> bool:
    """Whether two of libpq's URLs are of different databases, by host, port or name.

    What one of them does not say makes no difference, and neither does a connection string: it may
    name the same database in another way, for example past a pooler.
    """
    if not all(url.startswith(_SCHEMES) for url in (one, other)):
        return False
    try:
        first, second = conninfo.conninfo_to_dict(one), conninfo.conninfo_to_dict(other)
    except Error:  # its text may show the password
        return False
    ports = (first.get("port") or _PORT, second.get("port") or _PORT)
    names = [(first.get(key), second.get(key)) for key in ("host", "dbname")]
    return any(here != there for here, there in [ports, *names] if here and there)
