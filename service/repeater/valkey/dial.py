"""How a connection begins: TCP, TLS or a Unix socket, then who we are.

A server that is paused accepts connections and never answers. So all of it has one deadline.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import trio

from repeater.errors import open_service_nursery
from repeater.valkey.pipe import Lost, Part, Pipe, Pushes, Refused, packed
from repeater.valkey.url import Address, Credentials

TIMEOUT: Final = 1.0
"""Seconds for a connection to begin, on which the length of an outage depends."""

_NAME: Final = "repeater"  # in CLIENT LIST


class TLSFiles(msgspec.Struct, frozen=True):
    """The files for TLS: whom to trust (by default, whom the system trusts), and who we are."""

    ca_file: Path | None = None
    cert: Path | None = None
    key: Path | None = None


SYSTEM_TRUST: Final = TLSFiles()
"""No files."""


class Greeting(msgspec.Struct, frozen=True):
    """What every connection begins with."""

    tls: ssl.SSLContext | None = None
    credentials: Credentials = Credentials()
    database: int = 0
    part: str = ""
    """What it is for, as the log says."""


class _NoPushes:
    """For a connection that subscribes to nothing."""

    def push(self, message: list[object]) -> None:
        """Nothing: a server may send other news than messages."""

    async def wait_room(self) -> None:
        """Nothing is taken."""


NO_PUSHES: Final = _NoPushes()
"""For a connection that subscribes to nothing."""


def tls_context(files: TLSFiles) -> ssl.SSLContext:
    """What TLS connections use.

    Raises:
        OSError: a file cannot be read, or is not a certificate or key (`ssl.SSLError`).
    """
    context = ssl.create_default_context(cafile=files.ca_file)
    if files.cert is not None:
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(files.cert, files.key, password=lambda: b"")
    return context


@asynccontextmanager
async def dial(
    address: Address, greeting: Greeting, pushes: Pushes = NO_PUSHES
) -> AsyncIterator[Pipe]:
    """A connection for the time of a block; the pipe knows when it ends.

    Raises:
        Lost: the connection cannot be made in time.
        Refused: the server does not take us: wrong credentials, no such database.
    """
    deadline = trio.current_time() + TIMEOUT
    with trio.move_on_at(deadline) as scope:
        stream = await _open(address, greeting)
    if scope.cancelled_caught:
        secured = "" if greeting.tls is None else "TLS "  # a port without TLS never answers
        raise Lost(f"no {secured}connection within {TIMEOUT:g} s")
    pipe = Pipe(stream, pushes)
    async with open_service_nursery() as nursery:
        nursery.start_soon(pipe.run)
        with trio.move_on_at(deadline) as scope:
            await _greet(pipe, greeting)
        if scope.cancelled_caught:
            raise Lost(f"no answer within {TIMEOUT:g} s")
        yield pipe


async def answer_to(pipe: Pipe, *parts: Part) -> object:
    """Ask one thing and wait for the answer: for what is no hot path. The caller sets the deadline.

    Raises:
        Refused: the answer is an error.
        Lost: the connection has ended.
    """
    waited = Waited()
    pipe.ask(packed(*parts), waited.tell)
    return await waited.answer()


class Waited:
    """One answer for a task that waits for it."""

    def __init__(self) -> None:
        self._found: object = None
        self._arrived = trio.Event()

    def tell(self, answer: object) -> None:
        """Take the answer: a `Tell`."""
        self._found = answer
        self._arrived.set()

    async def answer(self) -> object:
        """Wait for the answer. The caller sets the deadline.

        Raises:
            Refused: it is an error.
            Lost: the connection has ended.
        """
        await self._arrived.wait()
        if isinstance(self._found, (Refused, Lost)):
            raise self._found
        return self._found


async def _open(address: Address, greeting: Greeting) -> trio.abc.Stream:
    try:
        if address.path:
            return await trio.open_unix_socket(address.path)
        if greeting.tls is None:
            return await trio.open_tcp_stream(address.host, address.port)
        secured = await trio.open_ssl_over_tcp_stream(
            address.host, address.port, ssl_context=greeting.tls
        )
    # Servers name others: a name that no host can have is a ValueError, a port an OverflowError.
    except (OSError, ValueError, OverflowError) as error:
        raise Lost(_without_address(error)) from None
    try:
        await secured.do_handshake()
    except BaseException as error:
        await trio.aclose_forcefully(secured)
        if isinstance(error, trio.BrokenResourceError):
            raise Lost(_reason_of(error)) from None
        raise
    return secured


def _without_address(error: Exception) -> str:
    """Why a connection cannot be made: health checks are open to all, and say this."""
    cause: BaseException = error.__cause__ or error
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, socket.gaierror):
        return f"no connection: {cause.strerror}"
    if not isinstance(cause, OSError) or not cause.errno:
        return "no connection"
    return f"no connection: {os.strerror(cause.errno)}"


def _reason_of(error: trio.BrokenResourceError) -> str:
    """Why a TLS handshake has failed, without the name that the certificate is not for."""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {cause.verify_message.partition(',')[0]}"
    return str(cause or error)


async def _greet(pipe: Pipe, greeting: Greeting) -> None:
    who = greeting.credentials
    login = ("AUTH", who.username or "default", who.password) if who else ()
    await answer_to(pipe, "HELLO", 3, *login, "SETNAME", _NAME)
    if greeting.database:
        await answer_to(pipe, "SELECT", greeting.database)
    await answer_to(pipe, "PING")
