"""One sweep for all clients: ping them, cut silent ones, and cut those with a stuck backlog.

A wheel of deadlines instead of a task or a timer for each client. The wheel calls each client that
is due. The client decides what to do, and returns the time at which it is due again.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import trio

from repeater.errors import SERVER_ERROR, Disconnect

if TYPE_CHECKING:
    from repeater.failures import Failures
    from repeater.fanout.outbox import BacklogRoom

_BUDGET = 0.001  # seconds of sweeping before fan-out and the readers have a turn


class Timed(Protocol):
    """An object that takes turns. `Client` implements it."""

    heartbeat_slot: int
    """The wheel's slot for this object. Only the wheel writes it."""

    def heartbeat(self) -> float | None:
        """Take the turn, and return the Trio time of the next one.

        None if the client has ended or has scheduled its next turn itself.
        """

    def cut(self, disconnect: Disconnect) -> None:
        """End the client, whose turn failed."""


class Heartbeat:
    """The wheel. Lives inside the node; its task is ended by the node's nursery."""

    def __init__(self, backlogs: BacklogRoom, tick: float, failures: Failures) -> None:
        self._backlogs = backlogs
        self._failures = failures
        self._tick = tick
        self._slots: dict[int, dict[Timed, None]] = {}
        self._now = 0
        self.lag = 0.0
        """Seconds by which the last tick was late, because the loop was busy."""

    async def run(self) -> None:
        """Sweep once a tick until cancelled. A late tick catches up on the slots it missed."""
        while True:
            due = trio.current_time() + self._tick
            await trio.sleep_until(due)
            self.lag = trio.current_time() - due
            await self.sweep()

    def schedule(self, client: Timed, due: float) -> None:
        """Schedule the client's turn for this Trio time. It comes at most one tick late."""
        slot = max(self._now + 1, math.ceil(due / self._tick))
        client.heartbeat_slot = slot
        self._slots.setdefault(slot, {})[client] = None

    def forget(self, client: Timed) -> None:
        """Drop the client's turn, and with it the reference to the client. Idempotent."""
        clients = self._slots.get(client.heartbeat_slot)
        if clients is None:
            return
        clients.pop(client, None)
        if not clients:
            del self._slots[client.heartbeat_slot]

    async def sweep(self) -> None:
        """Give every client that is due its turn, and cut those whose backlog is stuck.

        A sweep gives way each millisecond. A client that ends meanwhile has no turn any more:
        `forget` takes it out of the very slot that is being swept.
        """
        self._now = math.floor(trio.current_time() / self._tick)
        ends = perf_counter() + _BUDGET
        for slot in sorted(slot for slot in self._slots if slot <= self._now):
            # Gone if all its clients ended while this sweep gave way in an earlier slot.
            clients = self._slots.get(slot, {})
            while clients:
                self._give_turn(clients.popitem()[0])
                ends = await _give_way(ends)
            self._slots.pop(slot, None)
        for outbox in self._backlogs.stuck():
            outbox.cut_stuck()
            ends = await _give_way(ends)

    def _give_turn(self, client: Timed) -> None:
        """The boundary of one client's turn: an error in it costs that client only."""
        try:
            due = client.heartbeat()
        except Exception as error:
            self._failures.note("heartbeat", error)
            client.cut(SERVER_ERROR)
            return
        if due is not None:
            self.schedule(client, due)


async def _give_way(ends: float) -> float:
    """Let others run if the budget ends; return when it does from now on."""
    if perf_counter() <= ends:
        return ends
    await trio.lowlevel.checkpoint()
    return perf_counter() + _BUDGET
