"""Repeater: back ends publish events over REST, subscribers get them within milliseconds.

Library use starts here: `open_node` inside a Trio program; `service.subscriber` is the client and
`service.testing` the fakes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from service.node import Node, open_node
    from service.options import NodeOptions
    from service.publication import Publication, StreamPosition

__all__ = ["Node", "NodeOptions", "Publication", "StreamPosition", "__version__", "open_node"]

_HOMES = {
    "Node": "service.node",
    "open_node": "service.node",
    "NodeOptions": "service.options",
    "Publication": "service.publication",
    "StreamPosition": "service.publication",
}


def __getattr__(name: str) -> object:
    """Import on first use, so that `repeater --version` does not load the server."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
