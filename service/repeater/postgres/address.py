"""Where a PostgreSQL is, and how to connect to it without keeping the loop waiting.

libpq would look names up by a call that waits, and its `connect_timeout` does not hold for a
connection that is made in steps. So each name is looked up by Trio, and each address is one try
with a deadline of its own. Of several hosts the first that is what `target_session_attrs` asks for
is taken, so `target_session_attrs=read-write` finds the primary after a failover.

What the URL does not say, libpq takes from a service file and from variables such as PGHOST.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable
from typing import Final, NamedTuple

import psycopg
import trio
from psycopg import conninfo, pq

from repeater.postgres.errors import LostError
from repeater.postgres.pipe import Pipe, first_line
from repeater.postgres.url import url_parts

# A server that is gone without a word is noticed after about 9 s, one that takes no data after 5.
_KEEPALIVE: Final = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "2",
    "tcp_user_timeout": "5000",
}
# Kerberos is asked by calls that wait. Who wants its encryption says so in the URL.
_DEFAULTS: Final = _KEEPALIVE | {"gssencmode": "disable"}
# libpq refuses this before it connects, and has then found out all other values.
_NO_CONNECTION: Final = {"sslmode": "no-connection"}
_Attempt = dict[str, str]


async def connect(url: str, name: str, notified: Callable[[str], None], *, timeout: float) -> Pipe:
    """Connect to the first server that can be used, within `timeout` seconds for each address.

    `url` is a URL or a connection string of libpq, whose hosts are tried in their order. `name` is
    shown in `pg_stat_activity`, whatever the URL names. Texts are UTF-8. The caller runs the pipe,
    which ends the connection; cancelled, there is none.

    Raises:
        LostError: no server can be used; says why the last one could not.
    """
    parts = _parts(url)
    known = _known(parts)
    common = _DEFAULTS | parts | {"application_name": name, "client_encoding": "UTF8"}
    why = LostError("no address")
    for kind, host in itertools.product(_kinds(known), _hosts(known)):
        try:
            addresses = await _addresses(host, timeout)
        except LostError as error:
            why = error
            continue
        for address in addresses:
            # An empty text says as much as "not the one of PGHOST or of the service".
            place = {"host": host.name, "hostaddr": address, "port": host.port}
            try:
                with trio.fail_after(timeout):
                    made = await _connected(common | kind | place)
                return _piped(made, notified)
            except trio.TooSlowError:
                why = LostError("the server does not answer")
            except (psycopg.Error, OSError) as error:
                why = LostError(first_line(error))
    raise why


def _parts(url: str) -> _Attempt:
    try:
        return url_parts(url)
    except ValueError as error:
        raise LostError(str(error)) from None


def _known(parts: _Attempt) -> _Attempt:
    """The URL's values, and libpq's own for what is not in the URL.

    Raises:
        LostError: there is no such service, or numbers of hosts and ports do not match.
    """
    refused = pq.PGconn.connect_start(conninfo.make_conninfo(**(parts | _NO_CONNECTION)).encode())
    try:
        why = refused.get_error_message()
        if _NO_CONNECTION["sslmode"] not in why:
            raise LostError(why.partition("\n")[0])
        return {os.fsdecode(one.keyword): os.fsdecode(one.val or b"") for one in refused.info}
    finally:
        refused.finish()


def _kinds(known: _Attempt) -> list[_Attempt]:
    """What to ask all hosts for, one after the other.

    libpq is told one host at a time, so it cannot prefer one.
    """
    if known["target_session_attrs"] == "prefer-standby":
        return [{"target_session_attrs": "standby"}, {"target_session_attrs": "any"}]
    return [{}]


class _Host(NamedTuple):
    """One of the hosts of a URL; a text that is empty was not given."""

    name: str
    address: str
    port: str


def _hosts(known: _Attempt) -> list[_Host]:
    """Each host by itself. There is one port, or one for each host: libpq has checked that."""
    names, addresses, ports = (known[key].split(",") for key in ("host", "hostaddr", "port"))
    most = max(len(names), len(addresses))
    if len(ports) == 1:
        ports *= most
    return [
        _Host(_nth(names, number), _nth(addresses, number), ports[number]) for number in range(most)
    ]


def _nth(texts: list[str], number: int) -> str:
    return texts[number] if number < len(texts) else ""


async def _addresses(host: _Host, timeout: float) -> list[str]:
    """The addresses of a host; one that is empty for a Unix socket, or what libpq takes itself.

    Raises:
        LostError: the name is not known, or nobody answers in time.
    """
    if host.address or not host.name or host.name[0] in "/@":
        return [host.address]
    try:
        with trio.fail_after(timeout):
            found = await trio.socket.getaddrinfo(host.name, None, type=socket.SOCK_STREAM)
    except trio.TooSlowError:
        raise LostError(f"{host.name} is not known: nobody answers") from None
    except OSError as error:
        raise LostError(f"{host.name} is not known: {error.strerror or error}") from None
    except UnicodeError:  # "a..b", or a part of more than 63 characters
        raise LostError(f"{host.name} is not known: no name of a host") from None
    return list(dict.fromkeys(str(one[4][0]) for one in found))


async def _connected(attempt: _Attempt) -> pq.abc.PGconn:
    connection = pq.PGconn.connect_start(conninfo.make_conninfo(**attempt).encode())
    try:
        while True:
            if connection.status == pq.ConnStatus.BAD:
                raise psycopg.OperationalError(connection.get_error_message())
            state = connection.connect_poll()
            if state == pq.PollingStatus.OK:
                return connection
            if state == pq.PollingStatus.READING:
                await trio.lowlevel.wait_readable(connection.socket)
            elif state == pq.PollingStatus.WRITING:
                await trio.lowlevel.wait_writable(connection.socket)
            else:
                raise psycopg.OperationalError(connection.get_error_message())
    except BaseException:
        connection.finish()
        raise


def _piped(made: pq.abc.PGconn, notified: Callable[[str], None]) -> Pipe:
    try:
        return Pipe(made, notified)
    except BaseException:
        made.finish()
        raise
