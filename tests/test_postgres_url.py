"""What is an address of PostgreSQL, and what would show a password."""

from __future__ import annotations

import traceback

import pytest

from repeater.postgres.url import url_parts


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:x@secret@host/db",
        "postgresql://ann:x/secret@host/db",
        "postgresql://ann:secret/x@host/db",
        "postgres://ann:secret/x?y=1@host/db",
        "postgresql://ann:secret/x?y@host/db",
        "postgresql://ann:x?secret@y@host/db",
        "postgresql://ann:12/secret@host/db",
        "postgresql://ann:secret%zz@host/db",
        "postgresql://ann@host/db?passwort=secret",
        "postgresql+psycopg://ann:secret@host/db",
        "host=db port=secret",
        "host=db password=x secret",
        "host=db\0 password=secret",
        "host=\udcff password=secret",
        "secret",
    ],
)
def test_what_is_spelled_wrongly_is_refused_without_a_word_of_it(url: str) -> None:
    """Some of the password would be taken for a host or a port, and shown."""
    with pytest.raises(ValueError, match="the address is not one of PostgreSQL") as caught:
        url_parts(url)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("postgresql://", {}),
        ("postgresql:///db", {"dbname": "db"}),
        ("postgresql://ann@/db?host=/tmp", {"user": "ann", "dbname": "db", "host": "/tmp"}),
        ("postgres://h/?host=@abstract", {"host": "@abstract"}),
        ("postgresql://ann:a%40b%2Fc%25@h", {"user": "ann", "password": "a@b/c%", "host": "h"}),
        ("postgresql://ann:a?b:c@h", {"user": "ann", "password": "a?b:c", "host": "h"}),
        ("postgresql://a:1,b,[::1]:3/d", {"host": "a,b,::1", "port": "1,,3", "dbname": "d"}),
        ("postgresql://%2Ftmp/d", {"host": "/tmp", "dbname": "d"}),
        ("host=h port=' 1' password='a@b/c'", {"host": "h", "port": " 1", "password": "a@b/c"}),
        ("", {}),
    ],
)  # fmt: skip
def test_what_is_an_address_is_taken_apart(url: str, parts: dict[str, str]) -> None:
    """Also hosts without a port, addresses of IPv6, and sockets."""
    assert url_parts(url) == parts
