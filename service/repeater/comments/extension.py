"""The comments application as an extension of the server: see `repeater/config/extension.py`.

Modules that need the libraries of the extra are imported when the application starts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from repeater.comments.settings import INSTALL, CommentsSettings, is_installed
from repeater.config import Settings
from repeater.node import Node

if TYPE_CHECKING:
    from quart import Blueprint

    from repeater.comments.comments import Comments


class CommentsExtension:
    """Implements `Extension`."""

    settings = CommentsSettings

    def is_on(self, settings: Settings) -> bool:
        """Whether these settings ask for the application."""
        return isinstance(settings, CommentsSettings) and settings.comments_on

    def notice(self, settings: Settings) -> str | None:
        """A line that says how to install the application, if only that keeps it from running.

        By default, development mode runs the application only if its extra is installed.
        """
        if not isinstance(settings, CommentsSettings) or settings.comments is not None:
            return None
        if not settings.dev or is_installed():
            return None
        return f"the comments application is not installed: {INSTALL}"

    async def prepare(self, settings: Settings) -> None:
        """Make what all workers share; see `comments.prepare`."""
        from repeater.comments.comments import prepare

        assert isinstance(settings, CommentsSettings)
        await prepare(settings.comments_options())

    @asynccontextmanager
    async def open(self, node: Node, settings: Settings) -> AsyncIterator[Comments]:
        """Run the application; see `open_comments`."""
        from repeater.comments.comments import open_comments

        assert isinstance(settings, CommentsSettings)
        async with open_comments(node, settings.comments_options()) as comments:
            yield comments

    def blueprints(self, running: Callable[[], Comments]) -> Sequence[Blueprint]:
        """The application's routes and pages."""
        from repeater.comments.pages import create_pages
        from repeater.comments.routes import create_comments

        return create_comments(running), create_pages()

    def greeting(self, base: str) -> str:
        """The line that says where to open the application."""
        return f"Comments, to try it in a browser: {base}/"
