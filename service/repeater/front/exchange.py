"""The application's side of a request behind Hypercorn: its task, and the events for it.

Hypercorn's own task group waits for room to say that the peer has gone, and logs nothing when an
application fails. Here the end of a request never waits, and a failure is noted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import trio

if TYPE_CHECKING:
    from hypercorn.config import Config
    from hypercorn.typing import AppWrapper

    from repeater.turns import GiveWay

_ENDS: Final = ("http.disconnect", "websocket.disconnect")

Fail = Callable[[BaseException], None]
"""Notes the failure of one request."""


class Exchange:
    """The events of one request. `put` waits for room, but never with the last event."""

    def __init__(self, size: int) -> None:
        self._send, self._receive = trio.open_memory_channel[Any](size)
        self._last: Any = None

    async def put(self, event: Any) -> None:
        """Give an event to the application; drop it if the application or the peer has gone."""
        if event["type"] in _ENDS:
            if self._last is None:
                self._last = event
                self._send.close()
            return
        with contextlib.suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            await self._send.send(event)

    async def take(self) -> Any:
        """Wait for the next event; the last one comes again and again.

        No deadline: the connection has deadlines, and ends each of its requests.
        """
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            await trio.lowlevel.checkpoint()
            return self._last

    def close(self) -> None:
        """The application has ended: nobody waits for room any more."""
        self._receive.close()


class Requests:
    """The tasks of one connection's requests, as Hypercorn's protocols expect their task group."""

    def __init__(self, nursery: trio.Nursery, fail: Fail, give_way: GiveWay) -> None:
        """Note failures with `fail`, and `give_way` before each request."""
        self._nursery = nursery
        self._fail = fail
        self._give_way = give_way

    def spawn(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task that lives as long as the connection at most."""
        self._nursery.start_soon(task, *args)

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        """Start the application for one request; return what takes the request's events."""
        exchange = Exchange(config.max_app_queue_size)
        self._nursery.start_soon(self._run, app, scope, exchange, send)
        return exchange.put

    async def _run(
        self,
        app: AppWrapper,
        scope: Any,
        exchange: Exchange,
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        try:
            await self._give_way()
            await app(scope, exchange.take, send, trio.to_thread.run_sync, trio.from_thread.run)
        except BaseExceptionGroup as group:
            cancelled, failures = group.split(trio.Cancelled)
            if failures is not None:
                self._fail(failures)
            if cancelled is not None:
                raise cancelled from None
        except Exception as error:
            # The boundary around one request: its failure ends no other request.
            self._fail(error)
        finally:
            exchange.close()
        await send(None)  # Hypercorn answers 500 if nothing was answered
