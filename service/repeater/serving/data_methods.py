"""What `repeater data check` and `backup` ask a running server: to let its file stand still.

The command reads the file in its own process, so it costs the server's event loop nothing, and a
backup has its user's rights and not the server's. Commits go on meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from repeater.brokers.contract import Broker
from repeater.brokers.sqlite.broker import SQLiteBroker
from repeater.brokers.sqlite.files import log_size
from repeater.brokers.sqlite.journal import Journal
from repeater.serving.admin_call import AdminError
from repeater.serving.admin_socket import AdminMethod, Conversation

HOLD: Final = "data.hold"
"""The method's name."""

_LOOK: Final = 0.25  # seconds between two looks at the WAL
_UNPINNED_IN: Final = 5.0  # seconds; it waits for the commit that runs
_WAL_LIMIT: Final = 1 << 30  # bytes that commits may add to the WAL meanwhile


def data_methods(
    current: Callable[[], Broker], wal_limit: int = _WAL_LIMIT
) -> Mapping[str, AdminMethod]:
    """The methods for a server that has the `current` broker when it is asked."""

    async def hold(_params: dict[str, Any], conversation: Conversation) -> object:
        """Let the file stand still until the peer says that it has read it; says where it is."""
        broker = current()
        if not isinstance(broker, SQLiteBroker):
            raise AdminError("this server keeps no history in data_dir")
        async with _pinned(broker):
            await conversation.say({"file": str(await broker.with_journal(_path))})
            while True:  # no deadline: the peer hangs up, or the WAL reaches its bound
                with trio.move_on_after(_LOOK):
                    await conversation.ask()
                    break
                if await broker.with_journal(_log_size) > wal_limit:
                    raise AdminError("too much was written meanwhile: try again at a quieter time")
            if not await broker.with_journal(_is_pinned):
                raise AdminError("the disk failed meanwhile: try again")
        return {}

    return {HOLD: hold}


@asynccontextmanager
async def _pinned(broker: SQLiteBroker) -> AsyncIterator[None]:
    await broker.with_journal(Journal.pin)
    try:
        yield
    finally:
        # With a disk that does not answer the shutdown must not wait for its turn.
        with trio.move_on_after(_UNPINNED_IN, shield=True):
            await broker.with_journal(Journal.unpin)


def _path(journal: Journal) -> str:
    return str(journal.path.absolute())


def _log_size(journal: Journal) -> int:
    return log_size(journal.path)


def _is_pinned(journal: Journal) -> bool:
    return journal.pinned
