"""What a server must know of an application that runs inside it, in its process.

The server is made of this contract, and knows no application by name but in
`repeater/serving/extension.py`.
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
    """An application can't start; the text is one line for whoever started the server."""


class Extension(Protocol):
    """An application in the server's process. Its libraries may be missing until it is started."""

    @property
    def settings(self) -> type[Settings]:
        """The server's settings with the application's own: its fields, its checks (`mistakes`),
        and what it needs of the node (`node_options`)."""

    def is_on(self, settings: Settings) -> bool:
        """Whether the application runs with these settings."""

    def notice(self, settings: Settings) -> str | None:
        """A line for the log where the application would run, if something were installed."""

    def open(self, node: Node, settings: Settings) -> AbstractAsyncContextManager[Any]:
        """Run the application on a node for as long as the block lasts.

        Raises:
            ExtensionError: it can't start.
        """

    def blueprints(self, running: Callable[[], Any]) -> Sequence[Blueprint]:
        """The application's routes. `running` gives what `open` made, once that was made."""

    def greeting(self, base: str) -> str:
        """A line for whoever started a server with this address."""
