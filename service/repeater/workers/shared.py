"""What all workers share, in the supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.workers.denial_relay import DenialRelay
from repeater.workers.down import SupervisorBeat
from repeater.workers.holdings import Holdings
from repeater.workers.server_control import ServerControl
from repeater.workers.sink import Sink

if TYPE_CHECKING:
    from repeater.access.denial_store import DenialStore
    from repeater.backend.contract import Events
    from repeater.brokers.contract import Broker, PresenceStore
    from repeater.brokers.control import Supervision


class Shared:
    """Lives inside an `Exchange`."""

    def __init__(
        self,
        broker: Broker,
        presence: PresenceStore,
        denials: DenialStore,
        events: Events | None,
        timeout: float,
        supervision: Supervision | None,
    ) -> None:
        self.broker = broker
        self.presence = presence
        self.events = events
        self.timeout = timeout
        """Seconds of silence after which a worker is given up."""
        self.denials = DenialRelay(denials)
        self.holdings = Holdings(broker, events)
        self.sink = Sink(self.holdings.holders)
        self.control = ServerControl(supervision)

    def beat(self) -> SupervisorBeat:
        """What each worker is told once in a second."""
        events = None if self.events is None else self.events.statistics()
        return SupervisorBeat(self.broker.outage(), self.broker.statistics(), events)
