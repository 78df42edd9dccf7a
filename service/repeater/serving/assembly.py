"""A node as the configuration says, and how to change it: with tokens and callbacks around it.

Our own server and the application under a stock ASGI server both make their node here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, TypedDict, Unpack

from repeater.access.denial_store import DenialStore
from repeater.access.grants import TokenVerifier
from repeater.access.http_client import make_client
from repeater.access.sqlite_denials import SQLiteDenials, open_sqlite_denials
from repeater.access.tokens.options import TokenOptions
from repeater.access.tokens.replaceable import ReplaceableVerifier, open_replaceable_verifier
from repeater.backend.contract import Backend, Events
from repeater.backend.delivery import open_events
from repeater.backend.events import EventQueue
from repeater.backend.http import HTTPBackend
from repeater.backend.options import CallbackOptions
from repeater.brokers.contract import Broker, PresenceStore
from repeater.brokers.control import Control
from repeater.config import (
    Changes,
    ConfigError,
    CurrentSettings,
    Settings,
    reloadable,
    with_live_of,
)
from repeater.errors import BrokerError
from repeater.node import Node, open_node

_DENIALS: Final = "denials.sqlite3"


class Assembly:
    """A node and the settings that it runs by. Made and ended by `open_assembly`."""

    def __init__(
        self, node: Node, settings: CurrentSettings, verifier: ReplaceableVerifier
    ) -> None:
        self.node = node
        self._settings = settings
        self._verifier = verifier

    async def reload(self, new: Settings) -> Changes:
        """Take over what of other settings can be, all of it or nothing; says what that was.

        No connection is touched. Cancelled, nothing has changed.

        Raises:
            ConfigError: a token key is unusable, or what can be applied at once does not go
                with what needs a restart. The old settings stay.
        """
        old = self._settings()
        changes = reloadable(old, new)
        settings = with_live_of(old, new)
        if _token_options(settings) != _token_options(old):  # else the issuer's keys stay known
            try:
                await self._verifier.replace(*_token_options(settings))
            except ValueError as error:
                raise ConfigError(str(error)) from None
        self._settings.replace(settings)
        self.node.reload(settings.node_options())
        return changes


def _token_options(settings: Settings) -> tuple[TokenOptions, TokenOptions]:
    return settings.token_options(), settings.subscription_token_options()


class NodeParts(TypedDict, total=False):
    """Parts of a node that a program brings along; see `open_node`. They win over the settings."""

    broker: Broker | None
    presence: PresenceStore | None
    verifier: TokenVerifier | None
    backend: Backend | None
    events: Events | None
    denials: DenialStore | None
    control: Control | None


@asynccontextmanager
async def open_assembly(
    settings: CurrentSettings, **parts: Unpack[NodeParts]
) -> AsyncIterator[Assembly]:
    """Run a node for as long as the block lasts; see `open_node` for its end and its parts.

    Events that are left at the end are delivered, within the shutdown timeout.

    Raises:
        ConfigError: a token key, `data_dir` or `ca_file` is unusable.
    """
    async with AsyncExitStack() as stack:
        denials = await _denials(settings().kept_in, stack)
        verifier = await _verifier(settings(), stack)
        backend, events = await _callbacks(settings().callback_options(), stack)
        made: NodeParts = {
            "verifier": verifier,
            "backend": backend,
            "events": events,
            "denials": denials,
        }
        made.update(parts)
        node = open_node(settings().node_options(), **made)
        yield Assembly(await stack.enter_async_context(node), settings, verifier)


async def _denials(folder: Path | None, stack: AsyncExitStack) -> SQLiteDenials | None:
    """None where they are to be kept in memory only."""
    if folder is None:
        return None
    try:
        return await stack.enter_async_context(open_sqlite_denials(folder / _DENIALS))
    except BrokerError as error:
        raise ConfigError(f"data_dir: {error}") from None


async def _verifier(settings: Settings, stack: AsyncExitStack) -> ReplaceableVerifier:
    verifier = open_replaceable_verifier(*_token_options(settings))
    try:
        return await stack.enter_async_context(verifier)
    except ValueError as error:
        raise ConfigError(str(error)) from None


async def _callbacks(
    options: CallbackOptions, stack: AsyncExitStack
) -> tuple[HTTPBackend | None, EventQueue | None]:
    """None each, where no address is configured for it."""
    if not (options.kinds or options.event_url):
        return None, None
    try:
        client = make_client(proxy=options.proxy, ca_file=options.ca_file)
    except ValueError as error:
        raise ConfigError(f"callbacks.ca_file: {error}") from None
    await stack.enter_async_context(client)
    backend = HTTPBackend(options, client) if options.kinds else None
    if not options.event_url:
        return backend, None
    return backend, await stack.enter_async_context(open_events(options, client=client))
