"""Connections to the PostgreSQL of the tests, and statements that last as long as a test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
import trio

from repeater.postgres.address import connect
from repeater.postgres.errors import LostError, RefusedError
from repeater.postgres.pipe import Pipe
from tests.deadlines import PROCESS_STARTS

_KEY: Final = b"1954"
WAITING: Final = b"SELECT 1 FROM pg_advisory_xact_lock(%s)" % _KEY
"""A statement that waits as long as another session is in the block of `waiting`."""
_BLOCKED: Final = (
    b"SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted" % _KEY
)


@asynccontextmanager
async def piping(url: str, heard: list[str] | None = None) -> AsyncIterator[Pipe]:
    """A connection that runs for the time of the block."""
    tell = (lambda _channel: None) if heard is None else heard.append
    pipe = await connect(url, "repeater/test", tell, timeout=PROCESS_STARTS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.run)
        with trio.fail_after(PROCESS_STARTS):
            yield pipe
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def waiting(admin: Pipe) -> AsyncIterator[None]:
    """For the time of the block, `WAITING` waits in other sessions."""
    await admin.ask(b"SELECT pg_advisory_lock(%s)" % _KEY)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await admin.ask(b"SELECT pg_advisory_unlock(%s)" % _KEY)


async def wait_until_waiting(admin: Pipe) -> None:
    """Return when a session carries out `WAITING`."""
    while not await admin.ask(_BLOCKED):
        pass


async def failure_of(pipe: Pipe, statement: bytes, failures: list[BaseException]) -> None:
    """Ask for what must fail, and add how it did."""
    with pytest.raises((RefusedError, LostError)) as caught:
        await pipe.ask(statement)
    failures.append(caught.value)
