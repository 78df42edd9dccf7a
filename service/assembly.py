"""A node as the configuration says, with its verifier of tokens around it, and how to change both.

For whoever serves from settings: our own server, and the application under a stock ASGI server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from service.config import (
    Changes,
    ConfigError,
    CurrentSettings,
    Settings,
    reloadable,
    with_live_of,
)
from service.node import Node, open_node
from service.token_options import TokenOptions
from service.tokens.replaceable import ReplaceableVerifier, open_replaceable_verifier


class Assembly:
    """A node and the settings that it runs by. Made and ended by `open_assembly`."""

    def __init__(
        self, node: Node, settings: CurrentSettings, verifier: ReplaceableVerifier
    ) -> None:
        self.node = node
        self.settings = settings
        self.verifier = verifier

    async def reload(self, new: Settings) -> Changes:
        """Take over what of other settings can be, all of it or nothing; says what that was.

        No connection is touched. Cancelled, nothing has changed.

        Raises:
            ConfigError: a token key is of no use, or what can be applied at once does not go
                with what needs a restart. The old settings stay.
        """
        old = self.settings()
        changes = reloadable(old, new)
        settings = with_live_of(old, new)
        if _token_options(settings) != _token_options(old):  # else the issuer's keys stay known
            try:
                await self.verifier.replace(*_token_options(settings))
            except ValueError as error:
                raise ConfigError(str(error)) from None
        self.settings.replace(settings)
        self.node.reload(settings.node_options())
        return changes


def _token_options(settings: Settings) -> tuple[TokenOptions, TokenOptions]:
    return settings.token_options(), settings.subscription_token_options()


@asynccontextmanager
async def open_assembly(settings: Settings) -> AsyncIterator[Assembly]:
    """Run a node for as long as the block lasts; see `open_node` for its end.

    Raises:
        ConfigError: a token key is of no use.
    """
    async with AsyncExitStack() as stack:
        try:
            verifier = await stack.enter_async_context(
                open_replaceable_verifier(*_token_options(settings))
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        node = await stack.enter_async_context(
            open_node(settings.node_options(), verifier=verifier)
        )
        yield Assembly(node, CurrentSettings(settings), verifier)
