"""A node as the configuration says, and how to change it: with tokens and callbacks around it.

Our own server and the application under a stock ASGI server both make their node here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypedDict, Unpack

from repeater.access.denial_store import DenialStore
from repeater.access.grants import TokenVerifier
from repeater.access.tokens.options import TokenOptions
from repeater.access.tokens.replaceable import ReplaceableVerifier, open_replaceable_verifier
from repeater.backend.contract import Backend, Events
from repeater.brokers.contract import Broker, PresenceStore
from repeater.brokers.control import Control
from repeater.clients.shared_places import UserPlaces
from repeater.config import (
    Changes,
    ConfigError,
    CurrentSettings,
    Settings,
    reloadable,
    with_live_of,
)
from repeater.errors import BrokerError
from repeater.node import Node, open_node
from repeater.serving.callbacks import EventsOf, open_callbacks
from repeater.serving.outgoing import open_outgoing
from repeater.serving.stores import Stores, hold_data_dir, open_stores


class Assembly:
    """A node and the settings that it runs by. Made and ended by `open_assembly`."""

    def __init__(
        self, node: Node, settings: CurrentSettings, verifier: ReplaceableVerifier
    ) -> None:
        self.node = node
        self._settings = settings
        self._verifier = verifier

    async def reload(self, new: Settings) -> Changes:
        """Take over what of other settings can be, all of it or nothing; says what that was.

        No connection is touched. Cancelled, nothing has changed.

        Raises:
            ConfigError: a token key is unusable, or what can be applied at once does not go
                with what needs a restart. The old settings stay.
        """
        old = self._settings()
        changes = reloadable(old, new)
        settings = with_live_of(old, new)
        if _token_options(settings) != _token_options(old):  # else the issuer's keys stay known
            try:
                await self._verifier.replace(*_token_options(settings))
            except ValueError as error:
                raise ConfigError(str(error)) from None
        self._settings.replace(settings)
        self.node.reload(settings.node_options())
        return changes


def _token_options(settings: Settings) -> tuple[TokenOptions, TokenOptions]:
    return settings.token_options(), settings.subscription_token_options()


class NodeParts(TypedDict, total=False):
    """Parts of a node that a program brings along; see `open_node`. They win over the settings."""

    broker: Broker | None
    presence: PresenceStore | None
    verifier: TokenVerifier | None
    backend: Backend | None
    events: Events | None
    denials: DenialStore | None
    control: Control | None
    user_places: UserPlaces | None
    siblings: Control | None


class ServerNodeParts(NodeParts, total=False):
    """Those of a server's node, and what the server makes another part with."""

    events_of: EventsOf | None


@asynccontextmanager
async def with_stores(
    settings: CurrentSettings, parts: ServerNodeParts
) -> AsyncIterator[ServerNodeParts]:
    """Add the broker, the denials and the way to other nodes that the settings say.

    Those that are brought along stay.

    Raises:
        ConfigError: see `open_stores`.
    """
    if "broker" in parts and "denials" in parts:
        yield parts
        return
    with_broker = "broker" not in parts
    async with AsyncExitStack() as stack:
        if with_broker:
            stack.enter_context(hold_data_dir(settings()))
        stores = await stack.enter_async_context(open_stores(settings, with_broker=with_broker))
        kept = parts_of(stores)
        kept.update(parts)
        yield kept


def parts_of(stores: Stores) -> ServerNodeParts:
    """The parts of a node that were opened for it."""
    parts: ServerNodeParts = {"broker": stores.broker, "denials": stores.denials}
    if stores.presence is not None:
        parts["presence"] = stores.presence
    if stores.control is not None:
        parts["control"] = stores.control
    if stores.user_places is not None:
        parts["user_places"] = stores.user_places
    if stores.events_of is not None:
        parts["events_of"] = stores.events_of
    return parts


@asynccontextmanager
async def open_assembly(
    settings: CurrentSettings, **parts: Unpack[ServerNodeParts]
) -> AsyncIterator[Assembly]:
    """Run a node for as long as the block lasts; see `open_node` for its end and its parts.

    Events that are left at the end are delivered, within the shutdown timeout.

    Raises:
        ConfigError: a token key, `data_dir` or `ca_file` is unusable, the engine is down, or the
            database of `outbox` lacks the schema.
    """
    async with AsyncExitStack() as stack:
        kept = await stack.enter_async_context(with_stores(settings, parts))
        verifier = await _verifier(settings(), stack)
        control, events_of = kept.get("control"), kept.pop("events_of", None)
        backend, queue = await open_callbacks(
            settings().callback_options(),
            stack,
            node=settings().node,
            run="" if control is None else control.me.id,
            events="events" not in parts,
        )
        events: Events | None = queue
        if queue is not None and events_of is not None:
            events = await stack.enter_async_context(events_of(queue))
        made: NodeParts = {"verifier": verifier, "backend": backend, "events": events}
        made.update(kept)
        try:
            node = await stack.enter_async_context(open_node(settings().node_options(), **made))
        except BrokerError as error:  # without blocked users and revoked tokens nobody may come
            raise ConfigError(str(error)) from None
        await stack.enter_async_context(open_outgoing(node, settings()))
        yield Assembly(node, settings, verifier)


async def _verifier(settings: Settings, stack: AsyncExitStack) -> ReplaceableVerifier:
    verifier = open_replaceable_verifier(*_token_options(settings))
    try:
        return await stack.enter_async_context(verifier)
    except ValueError as error:
        raise ConfigError(str(error)) from None
