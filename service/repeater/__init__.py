"""Repeater: back ends publish events over REST, subscribers get them within milliseconds.

Library use starts here: `open_node` inside a Trio program; `repeater.subscriber` is the client and
`repeater.testing` the fakes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from repeater.node import Node, open_node
    from repeater.options import NodeOptions
    from repeater.publication import Publication, StreamPosition

__all__ = ["Node", "NodeOptions", "Publication", "StreamPosition", "__version__", "open_node"]

_HOMES = {
    "Node": "repeater.node",
    "open_node": "repeater.node",
    "NodeOptions": "repeater.options",
    "Publication": "repeater.publication",
    "StreamPosition": "repeater.publication",
}


def __getattr__(name: str) -> object:
    """Import on first use, so that `repeater --version` does not load the server."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
