"""Where a PostgreSQL is, and how to connect to it without keeping the loop waiting.

libpq would look names up by a call that waits, and its `connect_timeout` does not hold for a
connection that is made in steps. So each name is looked up by Trio, and each address is one try
with a deadline of its own. Of several hosts the first that is what `target_session_attrs` asks for
is taken, so `target_session_attrs=read-write` finds the primary after a failover.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

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
    why = "no address"
    for attempt in await _attempts(_parts(url), name):
        try:
            with trio.fail_after(timeout):
                return Pipe(await _connected(attempt), notified)
        except trio.TooSlowError:
            why = "the server does not answer"
        except (psycopg.Error, OSError) as error:
            why = first_line(error)
    raise LostError(why)


def _parts(url: str) -> _Attempt:
    try:
        return {key: str(value) for key, value in conninfo.conninfo_to_dict(url).items()}
    except psycopg.Error:
        raise LostError("the address is not one of PostgreSQL") from None


async def _attempts(parts: _Attempt, name: str) -> list[_Attempt]:
    """One set of parameters for each address of each host."""
    hosts = parts.pop("host", "").split(",")
    addresses = parts.pop("hostaddr", "").split(",")
    ports = parts.pop("port", "").split(",")
    common = {**_KEEPALIVE, "application_name": name, **parts}
    found: list[_Attempt] = []
    for number in range(max(len(hosts), len(addresses))):
        host, address = _nth(hosts, number), _nth(addresses, number)
        port = ports[0] if len(ports) == 1 else _nth(ports, number)
        known = [address] if address or not host or host[0] in "/@" else await _looked_up(host)
        found += [{**common, **_given(host=host, hostaddr=one, port=port)} for one in known]
    return found


def _nth(texts: list[str], number: int) -> str:
    return texts[number] if number < len(texts) else ""


def _given(**values: str) -> _Attempt:
    return {key: value for key, value in values.items() if value}


async def _looked_up(host: str) -> list[str]:
    try:
        found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise LostError(f"{host} is not known: {error.strerror or error}") from None
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
