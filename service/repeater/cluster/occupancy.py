"""Which channels have listeners on any node: the application hears of the first and of the last.

Each node says in the engine which channels it holds. The script that makes a channel held, or held
no more, gives the change a number, and this node has the change to tell; no other has. What a
node has to tell stays in the engine until the application has accepted it. If the node dies,
another one inherits it, and lets go of what the dead one held (`release_all_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from random import random
from typing import TYPE_CHECKING, Any, Final

import trio

from repeater.cluster.occupancy_lane import CHANNELS, Batch, Keys, Lane, Told, name_of
from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.valkey.dial import Waited
from repeater.valkey.pipe import Lost, Refused, ignore, packed
from repeater.valkey.script import packaged_script
from repeater.valkey.servers import answer_from

if TYPE_CHECKING:
    from repeater.backend.events import EventQueue
    from repeater.backend.options import EventKind
    from repeater.valkey.pipe import Part
    from repeater.valkey.script import Script
    from repeater.valkey.servers import Servers

_log = get_logger("events")

OCCUPANCY: Final = packaged_script(__package__, "occupancy")
INHERIT: Final = packaged_script(__package__, "inherit")

_RENEWAL: Final = 25.0  # seconds between two words about each channel, at most
_AGAIN: Final = 1.0  # seconds after a refusal
_LIFETIME: Final = 60_000  # milliseconds for which a hold counts without a word
_KEPT: Final = 86_400_000  # milliseconds for which all is kept, for who deals with a dead node
_REMEMBERED: Final = 300_000  # milliseconds: the clocks of two primaries differ by less
_EVENTS: Final = 10_000  # events that are read or inherited at a time


class Occupancy:
    """The channels of one node. Made by `open_cluster_events`, which runs `run`."""

    def __init__(self, servers: Servers, node: str, queue: EventQueue, *, prefix: str) -> None:
        """Tell `queue` of the changes that the node `node` has to tell."""
        self._servers = servers
        self._node = node
        self._queue = queue
        self._prefix = prefix
        self._lanes: dict[int, Lane] = {}
        self._refusal = ""
        self._look = trio.Event()
        self._settled = trio.lowlevel.ParkingLot()
        servers.add(self)

    def hold(self, channel: str) -> None:
        """Note that a channel has its first listener on this node. Never waits."""
        lane = self._lane(self._servers.partition_of(channel))
        lane.hold(channel)
        self._send(lane)

    def release(self, channel: str) -> None:
        """Note that a channel's last listener on this node is gone. Never waits."""
        lane = self._lane(self._servers.partition_of(channel))
        lane.release(channel)
        self._send(lane)

    def _lane(self, partition: int) -> Lane:
        lane = self._lanes.get(partition)
        if lane is None:
            keys = Keys(self._prefix, self._servers.tag(partition))
            lane = self._lanes[partition] = Lane(partition, keys)
        return lane

    # Scripts on their way.

    def _send(self, lane: Lane, *, also_nothing: bool = False) -> None:
        """Send what waits, unless a script is under way or the engine is away."""
        if lane.is_busy or not (lane.waits or also_nothing):
            return
        if self._servers.why(lane.partition):
            return
        lane.is_busy = True
        if lane.in_doubt and not lane.has_changes:
            # Behind the changes: what a lost script has done to them before is found now.
            lane.in_doubt = False
            key = lane.keys.telling(self._node)
            self._ask(lane, INHERIT, (key, key), (_KEPT, _EVENTS), partial(self._reminded, lane))
        else:
            batch = lane.take()
            keys, arguments = self._script(lane, batch, self._node)
            self._ask(lane, OCCUPANCY, keys, arguments, partial(self._answered, lane, batch))

    def _script(
        self, lane: Lane, batch: Batch, holder: str
    ) -> tuple[Sequence[bytes], Sequence[Part]]:
        held, telling = lane.keys.held(holder), lane.keys.telling(self._node)
        times = (_LIFETIME, _KEPT, _REMEMBERED)
        return (held, telling, *batch.keys(lane.keys)), (holder, *times, *batch.arguments())

    def _ask(
        self,
        lane: Lane,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[Part],
        tell: partial[None],
    ) -> None:
        try:
            script.ask(partial(self._servers.ask, lane.partition), keys, arguments, tell)
        except Lost as error:
            tell(error)

    def _answered(self, lane: Lane, batch: Batch, answer: object) -> None:
        if not isinstance(answer, list):
            lane.failed(batch)
            self._rest(lane, answer)
            return
        changes = _pairs(answer[0])
        lane.carried_out(batch, changes)
        self._note_all(lane, changes)
        names = [name for name in answer[1] if not self._is_foreign(lane, name)]
        lane.mention(one for name in names if (one := name_of(name)) not in lane)
        self._go_on(lane)

    def _is_foreign(self, lane: Lane, name: bytes) -> bool:
        """Whether no node can hold this; then the engine forgets it."""
        try:
            name_of(name)
        except ValueError:
            forget = packed("ZREM", lane.keys.held(self._node), name)
            with suppress(Lost):  # It is found once more.
                self._servers.ask(lane.partition, forget, ignore)
            return True
        return False

    def _reminded(self, lane: Lane, answer: object) -> None:
        """Tell once more what may not have been told: the queue knows what waits in it."""
        if not isinstance(answer, list):
            lane.in_doubt = True
            self._rest(lane, answer)
            return
        told = lane.told()
        self._note_all(lane, [one for one in _pairs(answer) if one not in told])
        self._go_on(lane)

    def _go_on(self, lane: Lane) -> None:
        lane.is_busy = False
        self._send(lane)
        if lane.is_settled:
            self._settled.unpark_all()

    def _rest(self, lane: Lane, error: object) -> None:
        """After an error: `up` goes on, or `run` a second later."""
        lane.is_busy = False
        if isinstance(error, Refused):
            if str(error) != self._refusal:
                _log.warning("the engine refuses to note channels", reason=str(error))
            self._refusal = str(error)
            self._look.set()

    def _note_all(self, lane: Lane, changes: Sequence[Told]) -> None:
        """Have the application told of changes, and then the engine."""
        for event, number in changes:
            if event:
                kind: EventKind = "channel_occupied" if event[:1] == b"o" else "channel_vacated"
                channel, told = event[1:].decode(errors="replace"), partial(self._told, lane)
                self._queue.channel_changed(kind, channel, number, partial(told, event, number))

    def _told(self, lane: Lane, event: bytes, number: int) -> None:
        lane.tell_of(event, number)
        self._send(lane)

    # House-keeping.

    def up(self, partitions: Sequence[int]) -> None:
        """Say everything anew: the engine may have lost some of it."""
        for partition in partitions:
            if (lane := self._lanes.get(partition)) is not None:
                lane.mention_all()
                self._send(lane)

    def down(self, partitions: Sequence[int]) -> None:
        """Do nothing: whatever was under way has been told."""

    async def wait_room(self) -> None:
        """Nothing comes by the bus."""

    def say_all(self) -> None:
        """Say everything anew, because another node has taken this one's channels out."""
        for lane in self._lanes.values():
            lane.mention_all()
            self._send(lane)

    async def run(self) -> None:
        """Keep alive what is held, until cancelled."""
        while True:
            with trio.move_on_after(_RENEWAL * (0.8 + 0.2 * random())):
                await self._look.wait()
                await trio.sleep(_AGAIN)
            self._look = trio.Event()
            for lane in self._lanes.values():
                lane.forget_old()
                lane.mention_held()
                self._send(lane, also_nothing=True)

    def release_all(self) -> None:
        """Let go of what is still held. Never waits."""
        for lane in self._lanes.values():
            lane.release_all()
            self._send(lane)

    async def wait_settled(self) -> None:
        """Wait until the engine knows what this node holds. The caller sets the deadline."""
        while not all(lane.is_settled for lane in self._lanes.values()):
            await self._settled.park()

    async def release_all_of(self, node: str) -> None:
        """Let go of all that a dead node held, and tell what it had to tell. Can be repeated.

        Cancelled, or after an error, some is done.

        Raises:
            BrokerError: the engine is away, or refuses.
        """
        for partition in range(self._servers.partitions):
            lane = self._lane(partition)
            try:
                while names := await self._held_by(node, lane):
                    # The node held them, whether the engine still knows that or not.
                    batch = Batch({}, (), [(b"V" + name, 0) for name in names])
                    keys, arguments = self._script(lane, batch, node)
                    answer = await self._run(lane, OCCUPANCY, keys, arguments)
                    self._note_all(lane, _pairs(answer[0]))
                keys = (lane.keys.telling(node), lane.keys.telling(self._node))
                events = await self._run(lane, INHERIT, keys, (_KEPT, _EVENTS))
                self._note_all(lane, _pairs(events))
            except (Lost, Refused) as error:
                lane.in_doubt = True
                raise BrokerError(f"the engine: {error}") from None

    async def _held_by(self, node: str, lane: Lane) -> Sequence[bytes]:
        key = lane.keys.held(node)
        try:
            found = await answer_from(self._servers, lane.partition, "ZRANGE", key, 0, CHANNELS - 1)
        except Refused as error:
            if error.code != "WRONGTYPE":
                raise
            found = ()  # The key is not ours.
        return found if isinstance(found, list) else ()

    async def _run(
        self, lane: Lane, script: Script, keys: Sequence[bytes], arguments: Sequence[Part]
    ) -> list[Any]:
        waited = Waited()
        script.ask(partial(self._servers.ask, lane.partition), keys, arguments, waited.tell)
        answer = await waited.answer()
        assert isinstance(answer, list)
        return answer


def _pairs(answer: Sequence[bytes]) -> list[Told]:
    """Events with their numbers, from an answer that has both in one row."""
    return list(zip(answer[::2], map(int, answer[1::2]), strict=True))
