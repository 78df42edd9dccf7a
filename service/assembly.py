"""A node as the configuration says: with its verifier of tokens around it.

For whoever serves from settings: our own server, and the application under a stock ASGI server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from service.config import ConfigError, Settings
from service.node import Node, open_node
from service.tokens.verifier import open_verifier


@asynccontextmanager
async def open_configured_node(settings: Settings) -> AsyncIterator[Node]:
    """Run a node for as long as the block lasts; see `open_node` for its end.

    Raises:
        ConfigError: a token key is of no use.
    """
    connection, subscription = settings.token_options(), settings.subscription_token_options()
    verifier = None
    async with AsyncExitStack() as stack:
        if connection.enabled or subscription.enabled:
            try:
                verifier = await stack.enter_async_context(open_verifier(connection, subscription))
            except ValueError as error:
                raise ConfigError(str(error)) from None
        yield await stack.enter_async_context(open_node(settings.node_options(), verifier=verifier))
