"""What a server keeps across restarts: its history, and blocked users and revoked tokens.

The settings say where: in `history.sqlite3` with the engine "sqlite", in the engine's servers with
"valkey", else at most the denials, in a file of their own. One process at a time uses the folder;
with "valkey" it has nothing but the socket at which commands ask.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

from repeater.access.denial_store import DenialStore, MemoryDenials
from repeater.access.sqlite_denials import SQLiteDenials, open_sqlite_denials
from repeater.brokers.contract import Broker, PresenceStore
from repeater.brokers.control import Control
from repeater.brokers.sqlite.broker import SQLiteBroker
from repeater.brokers.sqlite.denials import OLD_FILE, StoredDenials
from repeater.brokers.sqlite.file_system import network_file_system
from repeater.brokers.sqlite.journal import FILE
from repeater.brokers.sqlite.lock import hold_folder
from repeater.brokers.sqlite.opening import open_sqlite_broker
from repeater.clients.shared_places import UserPlaces
from repeater.config import ConfigError, CurrentSettings, Settings
from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.node import memory_broker
from repeater.private_files import make_private_folder
from repeater.serving.callbacks import EventsOf

_log = get_logger("history")


class Stores(NamedTuple):
    """What `open_stores` opens; the node runs the broker."""

    broker: Broker
    denials: DenialStore
    presence: PresenceStore | None = None
    """Over all nodes; None if the engine is not shared, as what follows."""
    control: Control | None = None
    user_places: UserPlaces | None = None
    events_of: EventsOf | None = None


@asynccontextmanager
async def open_stores(
    current: CurrentSettings, *, with_broker: bool = True, worker: int = 0
) -> AsyncIterator[Stores]:
    """Open what the settings say, for as long as the block lasts; history is loaded by then.

    At the end nothing stays open, and another process may use the folder.

    Args:
        current: What to open; what nodes tell each other of the settings follows a reload.
        with_broker: Whether the history is wanted; False for a program with a broker of its own.
        worker: The number of the worker whose node it is for, where that is of importance.

    Raises:
        ConfigError: the folder or a file in it is unusable, or another process uses the folder;
            one line names the process. Or a file for TLS to the engine is unusable.
    """
    settings = current()
    folder = settings.kept_in
    if with_broker and settings.engine_in_force == "valkey":
        from repeater.serving.engine import open_engine  # its library may not be installed

        async with open_engine(current, worker) as parts:
            yield Stores(*parts)
        return
    in_memory = memory_broker(settings.node_options())
    if folder is None:
        yield Stores(in_memory, MemoryDenials())
        return
    async with AsyncExitStack() as stack:
        with _unusable(folder):
            if with_broker and settings.engine_in_force == "sqlite":
                broker = await _history(settings, folder, stack)
                stores = Stores(broker, StoredDenials(broker))
            else:
                stores = Stores(in_memory, await _denials(folder, stack))
        yield stores


@contextmanager
def hold_data_dir(settings: Settings) -> Iterator[None]:
    """Hold `data_dir` for as long as the block lasts, where no engine does: with "valkey".

    Two servers of one machine would take each other's socket there away.

    Raises:
        ConfigError: as `open_stores`.
    """
    folder = settings.kept_in
    with ExitStack() as stack:
        if folder is not None and settings.engine_in_force == "valkey":
            with _unusable(folder):
                make_private_folder(folder)
                stack.enter_context(hold_folder(folder))
        yield


@contextmanager
def _unusable(folder: Path) -> Iterator[None]:
    """What makes the folder unusable is a mistake of `data_dir`."""
    try:
        yield
    except BrokerError as error:
        raise ConfigError(f"data_dir: {error}") from None
    except OSError as error:
        raise ConfigError(f"data_dir: {folder}: {error.strerror}") from None


async def _history(settings: Settings, folder: Path, stack: AsyncExitStack) -> SQLiteBroker:
    options = settings.node_options()
    broker = await stack.enter_async_context(
        open_sqlite_broker(
            folder,
            durability=settings.durability or "disk",
            history_bytes=options.history_bytes,
            history_channels=options.history_channels,
            history_disk_limit=settings.history_disk_limit,
            idempotency_ttl=options.idempotency_ttl,
            idempotency_bytes=options.idempotency_bytes,
        )
    )
    if found := network_file_system(folder):
        _log.warning(
            "history on a network file system can be damaged: use a disk of this machine",
            folder=str(folder),
            file_system=found,
        )
    return broker


async def _denials(folder: Path, stack: AsyncExitStack) -> SQLiteDenials:
    make_private_folder(folder)
    stack.enter_context(hold_folder(folder))
    if (folder / FILE).exists():
        _log.warning(
            "history, blocked users and revoked tokens that are kept there are not used: "
            'engine is "memory"',
            file=str(folder / FILE),
        )
    return await stack.enter_async_context(open_sqlite_denials(folder / OLD_FILE))
