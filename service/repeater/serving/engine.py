"""A node's parts in Valkey or Redis: with them the servers of an application are one cluster.

Imported where the engine is "valkey" only, since its client's library may not be installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from repeater.backend.options import EVENT_KINDS
from repeater.brokers.valkey.broker import ValkeyBroker
from repeater.cluster.events import open_cluster_events
from repeater.cluster.opening import open_cluster
from repeater.cluster.presence import open_cluster_presence
from repeater.config import ConfigError, CurrentSettings, Settings
from repeater.valkey.dial import TLSFiles, tls_context
from repeater.valkey.opening import open_servers
from repeater.valkey.slots import PARTITIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repeater.access.denial_store import DenialStore
    from repeater.brokers.contract import Broker, PresenceStore
    from repeater.brokers.control import Control
    from repeater.clients.shared_places import UserPlaces
    from repeater.serving.callbacks import EventsOf
    from repeater.valkey.servers import Servers
    from repeater.valkey.url import Endpoints


class EngineParts(NamedTuple):
    """What `open_engine` opens; the node runs broker, denials and control."""

    broker: Broker
    denials: DenialStore
    presence: PresenceStore
    control: Control
    user_places: UserPlaces
    events_of: EventsOf


@asynccontextmanager
async def open_engine(current: CurrentSettings, worker: int = 0) -> AsyncIterator[EngineParts]:
    """Open the parts of one node for as long as the block lasts; the node lives inside it.

    Each part has connections of its own: a flood of events delays nothing else.

    Args:
        current: Say where the engine is. Other nodes are told of the channels' options in force.
        worker: The number of the worker, from 1 on; 0 without workers.

    Raises:
        ConfigError: a file for TLS is unusable.
    """
    settings = current()
    endpoints = settings.engine_endpoints()
    opened = open_cluster(
        # Nodes meet at the first shard, and in a cluster at one partition.
        _servers(settings, endpoints[:1], "nodes", partitions=1),
        prefix=settings.engine_prefix,
        timeout=settings.engine_timeout,
        name=settings.node,
        worker=worker,
        options=SharedOptions(current),
    )
    prefix = settings.engine_prefix
    servers = _servers(settings, endpoints, "presence")
    async with (
        opened as cluster,
        # It runs these servers until the last events are delivered, too.
        open_cluster_presence(servers, cluster.members.me.id, prefix=prefix) as presence,
    ):
        broker = ValkeyBroker(
            _servers(settings, endpoints, "publications"),
            prefix=prefix,
            idempotency_ttl=settings.node_options().idempotency_ttl,
            strict=settings.engine_failover == "strict",
            foreign=lambda: {"control": cluster.foreign, "presence": presence.foreign},
        )
        yield EngineParts(
            broker,
            cluster.denials,
            presence,
            cluster.control,
            cluster.places,
            lambda queue: open_cluster_events(queue, servers, cluster.members, prefix=prefix),
        )


def _servers(
    settings: Settings, endpoints: Sequence[Endpoints], part: str, partitions: int = PARTITIONS
) -> Servers:
    check_files(settings)
    return open_servers(
        endpoints,
        TLSFiles(*settings.engine_files()),
        prefix=settings.engine_prefix,
        timeout=settings.engine_timeout,
        part=part,
        partitions=partitions,
    )


def check_files(settings: Settings) -> None:
    """Load the files for TLS to the engine, if it is reached by TLS.

    Raises:
        ConfigError: one is unusable; the text names it.
    """
    if not any(one.tls for one in settings.engine_endpoints()):
        return
    files = settings.engine_files()
    named = [(f"engine_{name}", path) for name, path in files._asdict().items() if path is not None]
    for name, path in named:
        try:
            path.open("rb").close()  # the errors of `ssl` name no file
        except OSError as error:
            raise ConfigError(f"{name}: {path}: {error.strerror}") from None
    try:
        tls_context(TLSFiles(*files))
    except OSError as error:  # `ssl.SSLError` too
        names = " or ".join(name for name, _ in named)
        raise ConfigError(f"{names}: {error.strerror or error}") from None


class SharedOptions:
    """Gives the digest of what nodes should have in common, also after a reload."""

    def __init__(self, current: CurrentSettings) -> None:
        self._current = current
        self._settings: Settings | None = None
        self._digest = ""

    def __call__(self) -> str:
        """A short text; made anew only if the settings were replaced."""
        settings = self._current()
        if settings is not self._settings:
            self._settings, self._digest = settings, options_digest(settings)
        return self._digest


def options_digest(settings: Settings) -> str:
    """A short text that differs for nodes with other options of channels, or other events.

    Events of channels and of lost nodes are told by any of the nodes.
    """
    options, callbacks = settings.node_options(), settings.callback_options()
    events = sorted(callbacks.events or EVENT_KINDS) if callbacks.event_url else ()
    shared = (options.channel, sorted(options.namespaces.items()), events)
    written = msgspec.json.encode(shared, enc_hook=str, order="deterministic")
    return hashlib.sha256(written).hexdigest()[:16]
