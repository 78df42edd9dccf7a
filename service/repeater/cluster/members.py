"""The members of a cluster: each beats at the engine, hears who is there, and who is lost.

A member that has not beaten for 10 s is lost. One of the others then does what is to be done for
it, once; the engine keeps that until it is done. A member that ends in order says goodbye, and
nothing is to be done. Clocks of nodes do not matter: the engine's says when a beat was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import random
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from repeater import __version__
from repeater.brokers.control import Member
from repeater.cluster.agreement import Agreement
from repeater.cluster.foreign import UNREADABLE, Foreign
from repeater.cluster.roster import Change, MemberRow, Roster
from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.valkey.script import packaged_script

if TYPE_CHECKING:
    from repeater.cluster.plane import Plane

_log = get_logger("cluster")

BEAT: Final = packaged_script(__package__, "beat")
GOODBYE: Final = packaged_script(__package__, "goodbye")
SETTLED: Final = packaged_script(__package__, "settled")

_PERIOD: Final = 3.0  # seconds between two beats, about
_SPREAD: Final = 0.5  # seconds by which it is earlier or later: nodes do not beat together
_STAY: Final = 10_000  # milliseconds after its last beat for which a node is a member
_GAP: Final = 5_000  # milliseconds between two beats: after more, it judges nobody for `_STAY`
_TRY: Final = 30_000  # milliseconds after which a duty that is not done is somebody else's
_GOODBYE: Final = 1.0  # seconds
_DIGITS: Final = 18  # of a version: one of milliseconds has 13

Duty = Callable[[Member], Awaitable[None]]
"""Does what is to be done for a lost member.

Done again, maybe by another node, until it has once returned; so it can be repeated. A
`BrokerError` says that it could not be done now.
"""

_decode_row: Final = msgspec.msgpack.Decoder(MemberRow).decode


class Members:
    """This node's membership. Lives inside the node's control, which runs and ends it."""

    def __init__(self, plane: Plane, me: Member, *, options: Callable[[], str] = str) -> None:
        """Be the member `me`.

        Args:
            plane: The way to the engine.
            me: This node; it is a server of its own.
            options: Gives a digest of what all nodes should have in common. A node with another
                one is warned of.
        """
        self.me = me
        self._plane = plane
        self._agreement = Agreement(me.name, options)
        self._roster = Roster(me)
        self._keys = tuple(
            plane.name(one) for one in ("nodes", "node-rows", "lost", "lost-rows", "nodes-version")
        )
        self._news = plane.name("news")
        self.foreign = Foreign()
        """News that no script has sent."""
        # Of the list; empty if there were news since, which a failover may have undone.
        self._version = ""
        self._since = self._last = 0  # Unix milliseconds of the engine
        self._failed = ""
        self._comes_back = False
        self._wake = trio.Event()
        self._duties: list[Duty] = []
        self._busy: set[bytes] = set()
        self._at_join: list[Callable[[Member], None]] = []
        self._at_leave: list[Callable[[Member], None]] = []
        self._at_return: list[Callable[[], None]] = []
        plane.hear(self._news, self._heard_news)
        plane.at_up(self._beat_now)

    def now(self) -> Sequence[Member]:
        """All members known now, this node first. While the engine is away, nobody is lost."""
        return self._roster.members()

    def __contains__(self, member: str) -> bool:
        return member in self._roster

    def row(self) -> MemberRow:
        """This node as the others get it."""
        return MemberRow(
            self.me.id, self.me.name, self.me.worker, __version__, self._agreement.digest()
        )

    # Who is told. All functions are given before `run`, and never wait, except for duties.

    def at_join(self, told: Callable[[Member], None]) -> None:
        """Have a function called when another member is known for the first time."""
        self._at_join.append(told)

    def at_leave(self, told: Callable[[Member], None]) -> None:
        """Have a function called when another one is no member any more: it left, or is lost."""
        self._at_leave.append(told)

    def at_loss(self, duty: Duty) -> None:
        """Have this done for each member that is lost, by one member at a time; see `Duty`."""
        self._duties.append(duty)

    def at_return(self, told: Callable[[], None]) -> None:
        """Have a function called when this node is a member again after it counted as lost.

        The duties for it are done by then, so what it puts into the engine from now on stays.
        """
        self._at_return.append(told)

    # News, and beats.

    def has_joined(self, row: MemberRow, version: int) -> None:
        """Take the news that another one has joined."""
        self._version = ""
        self._tell(self._roster.joined(row, version, trio.current_time()))

    def _heard_news(self, message: bytes) -> None:
        version, _, member = message.partition(b" ")
        if not (version.isdigit() and len(version) <= _DIGITS and member.isascii()):
            self.foreign.note("news", message)
            return
        self._version = ""
        self._tell(self._roster.left(member.decode(), int(version), trio.current_time()))

    def _tell(self, change: Change) -> None:
        for row in change.joined:
            _log.info("a node has joined", member=row.id, node=row.name, version=row.version)
            for told in self._at_join:
                told(row.member())
        for member in change.left:
            _log.info("a node has left", member=member.id, node=member.name)
            for told in self._at_leave:
                told(member)

    def _beat_now(self) -> None:
        self._wake.set()

    async def run(
        self,
        greet: Callable[[int], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Beat until cancelled; starts when this node is a member.

        No deadline: without the engine a node does not start.

        Args:
            greet: Has the others know this node, whenever it has become a member; gets the version
                of that news.
            task_status: See Trio.
        """
        is_member = False
        if self._plane.outage():
            with trio.move_on_after(_PERIOD):
                await self._wake.wait()
            if why := self._plane.outage():
                _log.warning("this node waits for the engine", reason=why)
                await self._wake.wait()
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                joined = await self._beat(nursery)
                if joined and is_member:
                    nursery.start_soon(greet, joined)
                elif joined:
                    await greet(joined)
                if not is_member and self._last:
                    is_member = True
                    task_status.started()
                with trio.move_on_after(_PERIOD + _SPREAD * (2 * random() - 1)):
                    await self._wake.wait()

    async def _beat(self, nursery: trio.Nursery) -> int:
        """Beat once; the version of the news if this node has become a member, else 0."""
        row = msgspec.msgpack.encode(self.row())
        arguments = (
            *(self.me.id, row, _STAY, self._version, self._since, self._last, _GAP, _TRY),
            *(self._plane.publish, self._news),
        )
        try:
            beaten = _beaten(await self._plane.call(BEAT, self._keys, arguments))
        except BrokerError as error:
            if str(error) != self._failed:
                self._failed = str(error)
                _log.warning(
                    "this node cannot tell the others that it is there", reason=self._failed
                )
            self._since = 0
            return 0
        self._failed = ""
        if not self._since or not beaten.is_steady:
            self._since = beaten.now
        returns = bool(beaten.is_new and self._last)
        self._last = beaten.now
        if beaten.rows is not None:
            rows = [row for row in map(_row, beaten.rows) if row is not None]
            self._tell(self._roster.listed(beaten.version, rows, trio.current_time()))
            self._version = "" if self._roster.has_news else str(beaten.version)
        self._agreement.check(self._roster.rows())
        for member, text in zip(beaten.due[::2], beaten.due[1::2], strict=True):
            if member not in self._busy:
                self._busy.add(member)
                nursery.start_soon(self._do_duties, member, text)
        self._come_back(returns=returns, waits=bool(beaten.waits))
        return beaten.version if beaten.is_new else 0

    def _come_back(self, *, returns: bool, waits: bool) -> None:
        if returns:
            _log.warning("this node was taken for lost, and is a member again")
            self._comes_back = True
        if self._comes_back and not waits:
            self._comes_back = False
            for told in self._at_return:
                told()

    async def _do_duties(self, member: bytes, text: bytes) -> None:
        lost = _lost(member, text)
        _log.warning("a node is lost", member=lost.id, node=lost.name)
        try:
            for duty in self._duties if member.isascii() else ():  # else no node has this id
                await duty(lost.member())
            await self._plane.call(SETTLED, self._keys[2:4], (member,))
        except BrokerError as error:  # Due again, for this node or another one.
            _log.warning(
                "a lost node is not dealt with", member=lost.id, node=lost.name, reason=str(error)
            )
        finally:
            self._busy.discard(member)

    async def say_goodbye(self) -> None:
        """Be no member any more; within a second, however this task is cancelled."""
        nodes, rows, _, _, version = self._keys
        arguments = (self.me.id, self._plane.publish, self._news)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _GOODBYE):
            try:
                await self._plane.call(GOODBYE, (nodes, rows, version), arguments)
            except BrokerError as error:
                _log.warning("the others take this node for lost", reason=str(error))


class _Beaten(msgspec.Struct, array_like=True, frozen=True):
    """The answer of the script."""

    version: int
    now: int
    is_new: int
    is_steady: int
    waits: int
    rows: list[bytes] | None
    due: list[bytes]


def _beaten(answer: object) -> _Beaten:
    """Read the answer of the script.

    Raises:
        BrokerError: it is not one.
    """
    try:
        return msgspec.convert(answer, _Beaten)
    except msgspec.ValidationError:
        raise BrokerError("the engine: an unknown answer to a beat") from None


def _lost(member: bytes, text: bytes) -> MemberRow:
    """The row of a lost member; one of its id alone if the engine has lost the row."""
    name, row = member.decode(errors="replace"), _row(text)
    return row if row is not None and row.id == name else MemberRow(name, "")


def _row(text: bytes) -> MemberRow | None:
    """A member; None for what no member has written."""
    try:
        return _decode_row(text)
    except UNREADABLE:
        return None
