"""A node as the configuration says: with its verifier of tokens and its callbacks around it.

For whoever serves from settings: our own server, and the application under a stock ASGI server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from service.brokers.denials import SQLiteDenials, open_sqlite_denials
from service.callback_options import CallbackOptions
from service.callbacks.backend import HTTPBackend, make_client
from service.callbacks.delivery import open_events
from service.callbacks.events import EventQueue
from service.config import ConfigError, Settings
from service.errors import BrokerError
from service.node import Node, open_node
from service.tokens.verifier import JWTVerifier, open_verifier

_DENIALS: Final = "denials.sqlite3"


@asynccontextmanager
async def open_configured_node(settings: Settings) -> AsyncIterator[Node]:
    """Run a node for as long as the block lasts; see `open_node` for its end.

    Events that are left at the end are delivered, within the shutdown timeout.

    Raises:
        ConfigError: a token key is of no use, or `data_dir` is.
    """
    async with AsyncExitStack() as stack:
        verifier = await _verifier(settings, stack)
        backend, events = await _callbacks(settings.callback_options(), stack)
        node = open_node(
            settings.node_options(),
            verifier=verifier,
            backend=backend,
            events=events,
            denials=await _denials(settings.kept_in, stack),
        )
        yield await stack.enter_async_context(node)


async def _denials(folder: Path | None, stack: AsyncExitStack) -> SQLiteDenials | None:
    """None where they are to be kept in memory only."""
    if folder is None:
        return None
    try:
        return await stack.enter_async_context(open_sqlite_denials(folder / _DENIALS))
    except BrokerError as error:
        raise ConfigError(f"data_dir: {error}") from None


async def _verifier(settings: Settings, stack: AsyncExitStack) -> JWTVerifier | None:
    """None where nothing proves a token."""
    connection, subscription = settings.token_options(), settings.subscription_token_options()
    if not (connection.enabled or subscription.enabled):
        return None
    try:
        return await stack.enter_async_context(open_verifier(connection, subscription))
    except ValueError as error:
        raise ConfigError(str(error)) from None


async def _callbacks(
    options: CallbackOptions, stack: AsyncExitStack
) -> tuple[HTTPBackend | None, EventQueue | None]:
    """None each, where no address is configured for it."""
    if not (options.kinds or options.event_url):
        return None, None
    client = await stack.enter_async_context(make_client())
    backend = HTTPBackend(options, client) if options.kinds else None
    if not options.event_url:
        return backend, None
    return backend, await stack.enter_async_context(open_events(options, client=client))
