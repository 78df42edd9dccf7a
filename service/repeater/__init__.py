"""Repeater: back ends publish events over REST, subscribers get them within milliseconds.

This is the library: everything a program needs to run a node or a server, and to subscribe.
`repeater.testing` has what its tests need, `docs/library.md` shows how it goes together. A name is
imported when it is first used, so that `import repeater` costs nothing and loads no web framework.
This file alone may import upwards; it defines nothing but the version.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers know the name; `typing` would cost the command's start 20 ms

__version__ = "0.1.0"

if TYPE_CHECKING:
    from typing import Final

    from repeater.access.denial_store import DenialStore
    from repeater.access.grants import (
        Caller,
        ConnectionGrant,
        PublicationGrant,
        Renewal,
        SubscriptionGrant,
    )
    from repeater.backend.contract import Backend, Events
    from repeater.backend.functions import BackendFunctions
    from repeater.brokers.contract import Broker, PresenceStore
    from repeater.brokers.memory import MemoryBroker
    from repeater.brokers.receipts import Receipt
    from repeater.clients.feed import Feed, ListenerBehindError
    from repeater.errors import (
        ApplicationError,
        BrokerError,
        Disconnect,
        DisconnectError,
        ErrorCode,
        IntakeFullError,
        RepeaterError,
        ReplyError,
    )
    from repeater.fanout.transport import Transport
    from repeater.node import Node, open_node
    from repeater.options import ChannelOptions, LimitOptions, NodeOptions
    from repeater.protocol.centrifugo.commands import ConnectRequest
    from repeater.publication import Publication, Rupture, StreamPosition
    from repeater.serving.application import create_app
    from repeater.serving.server import open_server
    from repeater.subscriber import open_subscriber

# Where each name is at home; the imports above say the same to type checkers.
_HOMES: Final = {
    "ApplicationError": "repeater.errors",
    "Backend": "repeater.backend.contract",
    "BackendFunctions": "repeater.backend.functions",
    "Broker": "repeater.brokers.contract",
    "BrokerError": "repeater.errors",
    "Caller": "repeater.access.grants",
    "ChannelOptions": "repeater.options",
    "ConnectRequest": "repeater.protocol.centrifugo.commands",
    "ConnectionGrant": "repeater.access.grants",
    "DenialStore": "repeater.access.denial_store",
    "Disconnect": "repeater.errors",
    "DisconnectError": "repeater.errors",
    "ErrorCode": "repeater.errors",
    "Events": "repeater.backend.contract",
    "Feed": "repeater.clients.feed",
    "IntakeFullError": "repeater.errors",
    "LimitOptions": "repeater.options",
    "ListenerBehindError": "repeater.clients.feed",
    "MemoryBroker": "repeater.brokers.memory",
    "Node": "repeater.node",
    "NodeOptions": "repeater.options",
    "PresenceStore": "repeater.brokers.contract",
    "Publication": "repeater.publication",
    "PublicationGrant": "repeater.access.grants",
    "Receipt": "repeater.brokers.receipts",
    "Renewal": "repeater.access.grants",
    "RepeaterError": "repeater.errors",
    "ReplyError": "repeater.errors",
    "Rupture": "repeater.publication",
    "StreamPosition": "repeater.publication",
    "SubscriptionGrant": "repeater.access.grants",
    "Transport": "repeater.fanout.transport",
    "create_app": "repeater.serving.application",
    "open_node": "repeater.node",
    "open_server": "repeater.serving.server",
    "open_subscriber": "repeater.subscriber",
}

__all__ = [
    "ApplicationError",
    "Backend",
    "BackendFunctions",
    "Broker",
    "BrokerError",
    "Caller",
    "ChannelOptions",
    "ConnectRequest",
    "ConnectionGrant",
    "DenialStore",
    "Disconnect",
    "DisconnectError",
    "ErrorCode",
    "Events",
    "Feed",
    "IntakeFullError",
    "LimitOptions",
    "ListenerBehindError",
    "MemoryBroker",
    "Node",
    "NodeOptions",
    "PresenceStore",
    "Publication",
    "PublicationGrant",
    "Receipt",
    "Renewal",
    "RepeaterError",
    "ReplyError",
    "Rupture",
    "StreamPosition",
    "SubscriptionGrant",
    "Transport",
    "__version__",
    "create_app",
    "open_node",
    "open_server",
    "open_subscriber",
]


def __getattr__(name: str) -> object:
    """Import a name on its first use."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
