"""Where a PostgreSQL is, and how to connect to it without keeping the loop waiting.

libpq would look names up by a call that waits, and its `connect_timeout` does not hold for a
connection that is made in steps. So each name is looked up by Trio, and each address is one try
with a deadline of its own. Of several hosts the first that is what `target_session_attrs` asks for
is taken, so `target_session_attrs=read-write` finds the primary after a failover.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, NamedTuple

import psycopg
import trio
from psycopg import conninfo, pq

from repeater.postgres.errors import LostError
from repeater.postgres.pipe import Pipe, first_line

# A server that is gone without a word is noticed after about 9 s, one that takes no data after 5.
_KEEPALIVE: Final = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "2",
    "tcp_user_timeout": "5000",
}
_Attempt = dict[str, str]


async def connect(url: str, name: str, notified: Callable[[str], None], *, timeout: float) -> Pipe:
    """Connect to the first server that can be used, within `timeout` seconds for each address.

    `url` is a URL or a connection string of libpq. `name` is shown in `pg_stat_activity`. The
    caller runs the pipe, which ends the connection; cancelled, there is none.

    Raises:
        LostError: no server can be used; says why the last one could not.
    """
    parts = _parts(url)
    why = LostError("no address")
    for host in _hosts(parts):
        try:
            addresses = await _addresses(host, timeout)
        except LostError as error:
            why = error
            continue
        for address in addresses:
            given = _given(host=host.name, hostaddr=address, port=host.port)
            try:
                with trio.fail_after(timeout):
                    made = await _connected(_KEEPALIVE | {"application_name": name} | parts | given)
                    return Pipe(made, notified)
            except trio.TooSlowError:
                why = LostError("the server does not answer")
            except (psycopg.Error, OSError) as error:
                why = LostError(first_line(error))
    raise why


def _parts(url: str) -> _Attempt:
    try:
        return {key: str(value) for key, value in conninfo.conninfo_to_dict(url).items()}
    except psycopg.Error:
        raise LostError("the address is not one of PostgreSQL") from None


class _Host(NamedTuple):
    """One of the hosts of a URL; a text that is empty was not given."""

    name: str
    address: str
    port: str


def _hosts(parts: _Attempt) -> list[_Host]:
    """Take the hosts out of the parameters."""
    names = parts.pop("host", "").split(",")
    addresses = parts.pop("hostaddr", "").split(",")
    ports = parts.pop("port", "").split(",")
    return [
        _Host(
            _nth(names, number),
            _nth(addresses, number),
            ports[0] if len(ports) == 1 else _nth(ports, number),
        )
        for number in range(max(len(names), len(addresses)))
    ]


def _nth(texts: list[str], number: int) -> str:
    return texts[number] if number < len(texts) else ""


def _given(**values: str) -> _Attempt:
    return {key: value for key, value in values.items() if value}


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
