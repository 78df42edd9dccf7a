"""The application that comes with the server, started, mounted and configured through one hook.

This module is the only one outside `repeater/comments/` that knows the comments application.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from repeater.comments.extension import CommentsExtension
from repeater.config import Settings
from repeater.config import load_settings as load
from repeater.config.extension import Extension
from repeater.node import Node

EXTENSION: Final[Extension] = CommentsExtension()
"""The application that comes with the server."""


def load_settings(config: Path | str | None = None, /, **overrides: object) -> Settings:
    """Read a server's settings, those of its application included.

    As `repeater.config.load_settings`, which knows the server's own settings only.

    Raises:
        ConfigError: a line for each mistake.
    """
    return load(config, EXTENSION.settings, **overrides)


async def prepare_extension(settings: Settings) -> None:
    """Make what the workers' applications share, if these settings ask for the application.

    Raises:
        ExtensionError: the application cannot start.
    """
    if EXTENSION.is_on(settings):
        await EXTENSION.prepare(settings)


@asynccontextmanager
async def open_extension(node: Node, settings: Settings) -> AsyncIterator[Any]:
    """Run the application for as long as the block lasts, if these settings ask for it.

    Gives what runs; None without an application.

    Raises:
        ExtensionError: the application can't start.
    """
    if not EXTENSION.is_on(settings):
        yield None
        return
    async with EXTENSION.open(node, settings) as running:
        yield running
