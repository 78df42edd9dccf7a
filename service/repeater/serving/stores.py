"""What is kept beside a node: its broker, and its blocked users and revoked tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from repeater.access.denial_store import DenialStore, MemoryDenials
from repeater.access.sqlite_denials import open_sqlite_denials
from repeater.brokers.contract import Broker
from repeater.brokers.sqlite.lock import FolderInUseError, hold_folder
from repeater.config import ConfigError, Settings
from repeater.errors import BrokerError
from repeater.node import memory_broker
from repeater.private_files import make_private_folder

_DENIALS: Final = "denials.sqlite3"


class Stores(NamedTuple):
    """What `open_stores` opens; the node runs the broker."""

    broker: Broker
    denials: DenialStore


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """Open what the settings ask for, for as long as the block lasts.

    No other process uses `data_dir` meanwhile.

    Raises:
        ConfigError: `data_dir` is unusable, or another process uses it.
    """
    with _held(settings.kept_in):
        async with open_denials(settings.kept_in) as denials:
            yield Stores(memory_broker(settings.node_options()), denials)


@contextmanager
def _held(folder: Path | None) -> Iterator[None]:
    with ExitStack() as stack:
        if folder is not None:
            try:
                make_private_folder(folder)
                stack.enter_context(hold_folder(folder))
            except FolderInUseError as error:
                raise ConfigError(f"data_dir: {error}") from None
            except OSError as error:
                raise ConfigError(f"data_dir: {folder}: {error.strerror}") from None
        yield


@asynccontextmanager
async def open_denials(folder: Path | None) -> AsyncIterator[DenialStore]:
    """Open the blocked users and revoked tokens of a folder; without one they are not kept.

    Raises:
        ConfigError: the folder is unusable.
    """
    if folder is None:
        yield MemoryDenials()
        return
    async with AsyncExitStack() as stack:
        try:
            denials = await stack.enter_async_context(open_sqlite_denials(folder / _DENIALS))
        except BrokerError as error:
            raise ConfigError(f"data_dir: {error}") from None
        yield denials
