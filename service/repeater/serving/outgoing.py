"""What transactions of a database publish, taken by a server's node where the settings say so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from repeater.config import ConfigError, Settings
from repeater.node import Node


@asynccontextmanager
async def open_outgoing(node: Node, settings: Settings) -> AsyncIterator[None]:
    """Publish what transactions publish, while the block lasts, if the settings ask for it.

    A database that is away is no error: health and metrics say so, and it is asked again.

    Raises:
        ConfigError: the database has no schema of Repeater, or another version of it, or is behind
            a pooler.
    """
    if not (url := settings.outbox_url()):
        yield
        return
    from repeater.outgoing import consumer, session  # their library may not be installed

    try:
        async with consumer.open_outgoing(node, url, largest=settings.body_limit):
            yield
    except session.UnusableError as error:
        name = settings.outbox_setting
        raise ConfigError(f"{name}: the database cannot be used: {error}") from None
