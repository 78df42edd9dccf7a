"""The address of a PostgreSQL taken apart, as libpq does it.

libpq takes a password that is not spelled as in a URL for a host or a port, and shows it in the
error. So such an address is refused before it is used. No error shows any of it.
"""

from __future__ import annotations

import re
from typing import Final

import psycopg
from psycopg import conninfo

_SCHEMES: Final = ("postgresql", "postgres")
_WRONG: Final = (
    "the address is not one of PostgreSQL"
    " (in a URL, the @, / and % of a password are %40, %2F and %25)"
)


def url_parts(url: str) -> dict[str, str]:
    """What a URL or a connection string of libpq says; not what libpq adds to it.

    Raises:
        ValueError: it is neither; the text has nothing of it.
    """
    try:
        parts = {key: str(value) for key, value in conninfo.conninfo_to_dict(url).items()}
    except (psycopg.Error, UnicodeError):
        raise ValueError(_WRONG) from None
    # libpq would not see what stands behind a zero byte.
    if "\0" in url or not _is_spelled(url) or not _are_numbers(parts.get("port", "")):
        raise ValueError(_WRONG)
    return parts


def _is_spelled(url: str) -> bool:
    """Whether what libpq takes for hosts and the name of the database has no "@".

    The password ends at the first "@", and there is none if a "/" comes before that.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES:
        return True
    return "@" not in re.sub("^[^@/]*@", "", rest).partition("?")[0]


def _are_numbers(ports: str) -> bool:
    return all(not port or port.strip().isdecimal() for port in ports.split(","))
