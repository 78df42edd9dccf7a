"""What an `engine_url` says."""

from __future__ import annotations

import pytest

from repeater.valkey.url import Address, Credentials, Endpoints, parse_url

HOST = (Address("host", 6379),)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("valkey://host", Endpoints("single", HOST)),
        ("redis://host:6379/", Endpoints("single", HOST)),
        ("valkeys://host", Endpoints("single", HOST, tls=True)),
        ("rediss://host/3", Endpoints("single", HOST, tls=True, database=3)),
        ("valkey://host?database=15", Endpoints("single", HOST, database=15)),
        ("valkey://[::1]:7000", Endpoints("single", (Address("::1", 7000),))),
        ("valkey://:secret@host", Endpoints("single", HOST, credentials=Credentials("", "secret"))),
        (
            "valkey://us%40er:a%2Fb%3A%23@host",
            Endpoints("single", HOST, credentials=Credentials("us@er", "a/b:#")),
        ),
        (
            "valkey+sentinel://one,two:7000,[fe80::1]:7001/main",
            Endpoints(
                "sentinel",
                (Address("one", 26379), Address("two", 7000), Address("fe80::1", 7001)),
                name="main",
            ),
        ),
        (
            "rediss+sentinel://:pw@host:6379/main/2?sentinel_username=a&sentinel_password=b%26+c",
            Endpoints(
                "sentinel",
                HOST,
                tls=True,
                credentials=Credentials("", "pw"),
                database=2,
                name="main",
                sentinel_credentials=Credentials("a", "b&+c"),
            ),
        ),
        (
            "valkeys+cluster://host,other:7000",
            Endpoints("cluster", (*HOST, Address("other", 7000)), tls=True),
        ),
        ("unix:///run/valkey.sock", Endpoints("single", (Address(path="/run/valkey.sock"),))),
        (
            "unix://:pw@/run/a%20b?database=1",
            Endpoints(
                "single",
                (Address(path="/run/a b"),),
                credentials=Credentials("", "pw"),
                database=1,
            ),
        ),
    ],
)
def test_what_a_url_says(url: str, expected: Endpoints) -> None:
    """Hosts, how the servers are found, and what they are told."""
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "must look like"),
        ("host:6379", "must look like"),
        ("http://s3cret@host", "must look like"),
        ("valkey+other://s3cret@host", "must look like"),
        ("valkey://", "a host is missing"),
        ("valkey://one,,two", "a host is missing"),
        ("valkey://:s3cret/x@host", "a host is missing; a / "),
        ("valkey://user:s3cret@x@h@host name", "a host cannot be read"),
        ("valkey://host:s3cret", "port"),
        ("valkey://user:s3cret/@host", "port"),
        ("valkey://host:0", "port"),
        ("valkey://host:65536", "port"),
        ("valkey://host:", "port"),
        ("valkey://[::1", "host"),
        ("valkey://host,other", "several hosts"),
        ("valkey://user@host", "a user without a password"),
        ("valkey://host/s3cret", "the database is not a number"),
        ("valkey://host?s3cret", "name=value"),
        ("valkey://host?timeout=s3cret", "unknown behind the question mark: timeout"),
        ("valkey://:s3c#ret@host", "%23"),
        ("valkey+sentinel://host", "the name of the primary"),
        ("valkey+cluster://host/1", "no database numbers"),
        ("valkey+cluster://host?database=1", "no database numbers"),
        ("valkey://host?sentinel_password=s3cret", "valkey.sentinel only"),
        ("unix://host/path", "three slashes"),
        ("unix://", "three slashes"),
    ],
)
def test_a_mistake_is_named_without_the_url(url: str, why: str) -> None:
    """The text says what is wrong, and shows nothing that may be a secret."""
    with pytest.raises(ValueError, match=why) as raised:
        parse_url(url)
    assert "s3cret" not in str(raised.value)


def test_passwords_are_not_shown() -> None:
    """Neither by a value's representation nor by that of what has it."""
    endpoints = parse_url("valkey+sentinel://user:s3cret@host/a?sentinel_password=s3cret")
    assert "s3cret" not in repr(endpoints)
    assert "s3cret" not in str(endpoints)
    assert repr(Credentials()) == "Credentials()"
