"""Connections of users over all nodes: `connections_per_user` with `limits.scope = "cluster"`.

Each node has its counts in the engine, by user; a place is taken by one script that adds the counts
of all members. A node that is lost takes its counts with it. Without the engine each node counts
alone, so a limit may be exceeded until connections end.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import trio

from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.tally import subtract
from repeater.valkey.script import packaged_script

if TYPE_CHECKING:
    from repeater.brokers.control import Member
    from repeater.cluster.members import Members
    from repeater.cluster.plane import Plane

_log = get_logger("limits")

TAKE: Final = packaged_script(__package__, "take_place")
LEAVE: Final = packaged_script(__package__, "leave_place")
WRITE: Final = packaged_script(__package__, "write_places")
KEEP: Final = packaged_script(__package__, "keep_places")
DROP: Final = packaged_script(__package__, "drop_places")

_KEPT: Final = 60_000  # milliseconds for which the engine keeps counts of a node that is silent
_PERIOD: Final = 20.0  # seconds between two looks at them
_TOGETHER: Final = 500  # users written by one script
_AGAIN: Final = 1.0  # seconds after a refusal
_GOODBYE: Final = 0.5  # seconds


class ClusterPlaces:
    """Implements `UserPlaces`. Made by `open_cluster`, which runs `run`."""

    def __init__(self, plane: Plane, members: Members) -> None:
        self._plane = plane
        self._members = members
        self._own = self._key(members.me.id)
        self._held: Counter[str] = Counter()
        self._changes = self._writes = 0
        self._doubt = False
        self._failed = ""
        self._wake = trio.Event()
        plane.at_up(self._doubt_counts)
        members.at_return(self._doubt_counts)
        members.at_loss(self._forget)

    def _key(self, member: str) -> bytes:
        return self._plane.name("places", member)

    def _doubt_counts(self) -> None:
        """Have the counts written anew: the engine may have others."""
        self._doubt = True
        self._wake.set()

    async def take(self, user: str, most: int) -> bool:
        """Take a place of a user; return whether there was one. See `UserPlaces`.

        Waits `timeout` seconds of the plane at most, also if it is cancelled: who does not know the
        answer does not know whether there is a place to give back.
        """
        keys = [self._own, *(self._key(one.id) for one in self._members.now()[1:])]
        name, written = _name(user), self._writes
        self._count(user, 1)
        taken = False
        try:
            with trio.CancelScope(shield=True):
                taken = await self._plane.call(TAKE, keys, (name, most, _KEPT)) == 1
            left = written != self._writes and not taken  # It was written as if it were taken.
        except BrokerError:
            taken = self._held[user] <= most
            left = False
            self._doubt_counts()
        if not taken:
            self._count(user, -1)
            if left:
                self._plane.tell(LEAVE, (self._own,), (name,))
        return taken

    def give_back(self, user: str) -> None:
        """Give a place back. Never waits."""
        self._count(user, -1)
        self._plane.tell(LEAVE, (self._own,), (_name(user),))

    def _count(self, user: str, number: int) -> None:
        self._changes += 1
        subtract(self._held, user, -number)

    async def run(self) -> None:
        """Keep the counts right until cancelled; then forget them, within half a second."""
        try:
            while True:
                self._wake = trio.Event()
                # In an outage it is not tried: the end of the outage wakes this task.
                if (self._held or self._doubt) and not self._plane.outage():
                    try:
                        await (self._write() if self._doubt else self._keep())
                        self._failed = ""
                    except BrokerError as error:
                        self._doubt = True
                        self._note(str(error))
                        await trio.sleep(_AGAIN)  # Each connection that comes wakes this task.
                with trio.move_on_after(_PERIOD):
                    await self._wake.wait()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _GOODBYE):
                await self._forget(self._members.me)

    def _note(self, reason: str) -> None:
        if reason != self._failed:
            _log.warning("users' connections are not counted", reason=reason)
        self._failed = reason

    async def _write(self) -> None:
        """Write all counts; those that change meanwhile are right too, as the order is kept."""
        self._doubt = False
        users = tuple(self._held)
        for start in range(0, max(1, len(users)), _TOGETHER):
            self._writes += 1
            rows: list[bytes | int] = [int(start == 0), _KEPT]
            for user in users[start : start + _TOGETHER]:
                if user in self._held:
                    rows += (_name(user), self._held[user])
            await self._plane.call(WRITE, (self._own,), rows)

    async def _keep(self) -> None:
        changes = self._changes
        found = await self._plane.call(KEEP, (self._own,), (_KEPT,))
        # One field more is for all together.
        if found != [len(self._held) + 1, self._held.total()] and changes == self._changes:
            self._doubt_counts()

    async def _forget(self, member: Member) -> None:
        try:
            await self._plane.call(DROP, (self._key(member.id),), ())
        except BrokerError:
            if member.id != self._members.me.id:
                raise


def _name(user: str) -> bytes:
    return user.encode(errors="surrogatepass")
