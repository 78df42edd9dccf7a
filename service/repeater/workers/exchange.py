"""The supervisor's side of all links: one broker and one of each store for all workers.

`Exchange` has what is shared; an `Attachment` serves one worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from repeater import __version__
from repeater.log import get_logger
from repeater.workers.attachment import Attachment
from repeater.workers.down import Hello
from repeater.workers.messages import VERSION
from repeater.workers.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from repeater.access.denial_store import DenialStore
    from repeater.backend.contract import Events
    from repeater.brokers.contract import Broker, PresenceStore
    from repeater.brokers.control import Member, Supervision, SupervisorControl

_log = get_logger("workers")


class Exchange:
    """Made by the supervisor, whose nursery runs `run` and one `attach` for each worker."""

    def __init__(
        self,
        broker: Broker,
        presence: PresenceStore,
        denials: DenialStore,
        events: Events | None = None,
        *,
        timeout: float = 10.0,
        supervision: Supervision | None = None,
    ) -> None:
        """Serve workers with these parts, whose owner outlives the exchange.

        Args:
            broker: Numbers and keeps what all workers publish. `run` runs and ends it.
            presence: Who is in a channel, over all workers.
            denials: Stores blocked users and revoked tokens.
            events: Is told of all workers' clients and channels, in one order.
            timeout: Seconds of silence after which a worker is given up.
            supervision: Answers the questions of workers to their server.
        """
        self._shared = Shared(broker, presence, denials, events, timeout, supervision)
        self.attachments: dict[Attachment, int] = {}
        """The workers that are attached now, with their numbers. While a worker is replaced, there
        are two of one number."""

    @property
    def control(self) -> SupervisorControl:
        """The supervisor's own end of the control plane."""
        return self._shared.control

    @property
    def server(self) -> Member:
        """The server as the workers' control knows it."""
        return self._shared.control.me

    @property
    def channels(self) -> int:
        """The number of channels that have a listener on some worker."""
        return len(self._shared.holdings)

    @property
    def publications(self) -> int:
        """The number of publications since the start, each counted once."""
        return self._shared.sink.publications

    async def run(self) -> None:
        """Run the broker until cancelled. Called before the first worker is attached."""
        await self._shared.broker.run(self._shared.sink)

    async def attach(
        self, stream: trio.SocketStream, number: int, given_up: Callable[[str], None]
    ) -> None:
        """Serve one worker until its link ends; then take back what the worker has said.

        The link ends when the worker closes it or dies. A worker that is silent, or for which too
        many events wait, is given up: its link is closed. The stream is closed in any case.
        Cancelled, nothing is taken back: the whole server ends.

        Args:
            stream: The supervisor's end of the socket pair.
            number: The worker's number.
            given_up: Called with the reason when the worker is given up; then its process is to be
                killed. It never waits.
        """
        shared = self._shared
        attachment = Attachment(shared, stream, given_up)
        attachment.link.send(Hello(VERSION, __version__, number, shared.control.me.id))
        attachment.link.send(shared.beat())
        self.attachments[attachment] = number
        shared.sink.backlogs.add(attachment.backlog)
        shared.denials.add(attachment)
        try:
            await attachment.run()
        finally:
            del self.attachments[attachment]
            shared.sink.backlogs.discard(attachment.backlog)
            shared.denials.discard(attachment)
            attachment.control.end()
            attachment.backlog.close()
        _log.debug("a worker's link has ended", worker=number, reason=attachment.link.end)
        await attachment.take_back()

    @property
    def silence(self) -> float:
        """Seconds since the most silent worker was heard."""
        return max((one.link.silence for one in self.attachments), default=0.0)

    def close(self) -> None:
        """Take no more submissions, because the server shuts down."""
        self._shared.sink.close()
