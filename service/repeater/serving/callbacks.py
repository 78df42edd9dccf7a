"""The application's back end: what it is asked, and what it is told, as the configuration says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from repeater.access.http_client import make_client
from repeater.backend.contract import Events
from repeater.backend.delivery import open_events
from repeater.backend.events import EventQueue
from repeater.backend.http import HTTPBackend
from repeater.backend.options import CallbackOptions
from repeater.config import ConfigError

EventsOf = Callable[[EventQueue], AbstractAsyncContextManager[Events]]
"""Opens what stands between a node and the queue of its events, where nodes tell of things that no
node knows alone."""


async def open_callbacks(
    options: CallbackOptions,
    stack: AsyncExitStack,
    *,
    node: str = "",
    run: str = "",
    questions: bool = True,
    events: bool = True,
) -> tuple[HTTPBackend | None, EventQueue | None]:
    """Open both halves; None each, where no address is configured for it, or it is not wanted.

    Args:
        options: The addresses.
        stack: Ends what was opened.
        node: The node's name, for the events.
        run: The name of the node's run, for the events; by default a random one.
        questions: Whether this process asks the back end.
        events: Whether this process tells the back end of events.

    Raises:
        ConfigError: `ca_file` is unusable.
    """
    asks, tells = questions and bool(options.kinds), events and bool(options.event_url)
    if not (asks or tells):
        return None, None
    try:
        client = make_client(proxy=options.proxy, ca_file=options.ca_file)
    except ValueError as error:
        raise ConfigError(f"callbacks.ca_file: {error}") from None
    await stack.enter_async_context(client)
    backend = HTTPBackend(options, client) if asks else None
    if not tells:
        return backend, None
    queue = open_events(options, client=client, node=node, run=run)
    return backend, await stack.enter_async_context(queue)
