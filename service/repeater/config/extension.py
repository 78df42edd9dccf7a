"""The contract between the server and an application that runs in the server's process.

The server uses an application only through this contract. Only `repeater/serving/extension.py`
names one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

from repeater.config.settings import Settings
from repeater.errors import RepeaterError
from repeater.node import Node

if TYPE_CHECKING:
    from quart import Blueprint


class ExtensionError(RepeaterError):
    """An application cannot start; the text is one line for the person who started the server."""


class Extension(Protocol):
    """An application in the server's process. Until it starts, its libraries may be missing."""

    @property
    def settings(self) -> type[Settings]:
        """A class with the server's settings and the application's: its fields, its checks
        (`mistakes`), and the node options that the application needs (`node_options`)."""

    def is_on(self, settings: Settings) -> bool:
        """Whether the application runs with these settings."""

    def notice(self, settings: Settings) -> str | None:
        """A line for the log if the application would run, but is not installed; else None."""

    async def prepare(self, settings: Settings) -> None:
        """Make what all workers share, once and before the first of them.

        Raises:
            ExtensionError: the application cannot start.
        """

    def open(self, node: Node, settings: Settings) -> AbstractAsyncContextManager[Any]:
        """Run the application on a node for as long as the block lasts.

        Raises:
            ExtensionError: the application cannot start.
        """

    def blueprints(self, running: Callable[[], Any]) -> Sequence[Blueprint]:
        """The application's routes. `running` returns what `open` made, once `open` has made it."""

    def greeting(self, base: str) -> str:
        """A line for the person who started the server; `base` is the server's URL."""
