"""Blocked users and revoked tokens of a cluster: kept in the engine, and applied by every node.

A change is numbered and kept by one script, then all members apply it and say so. A member that was
cut off reads the table when the engine is there again, and looks for missed changes every 5 s. What
connects to it before that may be blocked already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from random import random
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio

from repeater.access.grants import Denial
from repeater.brokers.control import Question
from repeater.cluster.denial_log import Change, DenialLog, Table, denial_of, name_of, value_of
from repeater.cluster.foreign import UNREADABLE, Foreign
from repeater.errors import BrokerError, ReplyError
from repeater.log import get_logger
from repeater.random_id import random_id
from repeater.valkey.script import packaged_script

if TYPE_CHECKING:
    from repeater.brokers.control import Member
    from repeater.cluster.control import ClusterControl
    from repeater.cluster.plane import Plane

T = TypeVar("T")

_log = get_logger("cluster")

DENY: Final = packaged_script(__package__, "deny")
DENIALS: Final = packaged_script(__package__, "denials")
FORGET: Final = packaged_script(__package__, "forget")

_METHOD: Final = ":deny"
_LOAD: Final = 5.0  # seconds for the engine to be there when a node starts
_LOOK: Final = 5.0  # seconds between two looks for missed changes, about
_REORDERED: Final = 0.1  # seconds for a change that another one has overtaken
_APPLIED: Final = 10.0  # seconds for a change of another node; who asks waits for one
_TOGETHER: Final = 500  # denials forgotten by one script

_decode_change: Final = msgspec.msgpack.Decoder(Change).decode


class _Read(msgspec.Struct, array_like=True, frozen=True):
    """The answer of the script that reads all; without rows nothing has changed."""

    number: int
    mark: bytes
    is_later: int
    lost: list[bytes]
    rows: dict[bytes, bytes] | list[bytes] | None = None

    def table(self) -> Table:
        """The same as the log takes it."""
        rows = self.rows or {}
        if isinstance(rows, list):
            rows = dict(zip(rows[::2], rows[1::2], strict=True))
        return Table(self.number, _text(self.mark), bool(self.is_later), rows)


class _Kept(msgspec.Struct, array_like=True, frozen=True):
    """The answer of the script that keeps one."""

    number: int
    before: bytes
    value: bytes


def _text(mark: bytes) -> str:
    return mark.decode("ascii", "replace")


class ClusterDenials:
    """Implements `DenialStore` in the engine. Made by `open_cluster`; the node runs `run`."""

    def __init__(self, plane: Plane, control: ClusterControl) -> None:
        """Take the way to the engine, and the way to the other members."""
        self._plane = plane
        self._control = control
        self._keys = (plane.name("denials"), plane.name("denials-version"))
        self._log = DenialLog()
        self.foreign = Foreign()
        """Rows that no member has written, each time they are read."""
        self._changes: deque[Denial] = deque()
        self._doubt = False
        self._came = trio.Event()
        self._progress = trio.Event()
        self._up = trio.Event()
        self._failed = ""
        plane.at_up(self._is_up)
        control.answer(_METHOD, self._told)
        control.at_start(self._doubt_all)

    def _is_up(self) -> None:
        self._up.set()
        self._doubt_all()

    def _doubt_all(self) -> None:
        """Look at the table: changes may have been missed."""
        self._doubt = True
        self._came.set()

    async def load(self) -> Sequence[Denial]:
        """All denials in force; changes from now on come by `run`. Waits 5 s for the engine."""
        with trio.move_on_after(_LOAD):
            await self._up.wait()
        return await self._read()

    async def run(self, apply: Callable[[Denial], Awaitable[None]]) -> None:
        """Apply what any node has changed, in the order of the changes, until cancelled."""
        while True:
            self._came = trio.Event()
            while self._changes:
                await apply(self._changes[0])
                self._changes.popleft()
            self._progress.set()
            self._progress = trio.Event()
            if self._log.behind and not self._doubt:
                await trio.sleep(_REORDERED)
            if self._doubt or self._log.behind:
                await self._look()
            if self._changes:
                continue
            with trio.move_on_after(_LOOK * (0.9 + 0.2 * random())) as waiting:
                await self._came.wait()
            self._doubt = self._doubt or waiting.cancelled_caught

    async def _look(self) -> None:
        """Read what was missed; if the engine is not there, the next time."""
        self._doubt = False
        try:
            self._changes.extend(await self._read())
            for name, value in tuple(self._log.unwritten.items()):
                denial = denial_of(name, value)
                _log.warning("a denial that the engine lost is written anew", kind=denial.key[0])
                self._note(await self._write(denial, anew=True))
            self._failed = ""
        except BrokerError as error:
            if str(error) != self._failed:
                self._failed = str(error)
                _log.warning("denials of other nodes are not read", reason=self._failed)

    async def _read(self) -> list[Denial]:
        """What differs from what is known."""
        known = (self._log.number, self._log.mark)
        waiting = [part for one in self._log.waiting for part in (one.number, one.mark)]
        answer = _converted(await self._plane.call(DENIALS, self._keys, (*known, *waiting)), _Read)
        lost, changed = self._log.withdraw({_text(mark) for mark in answer.lost}), list[Denial]()
        if answer.rows is None:
            pass  # nothing is newer
        elif answer.number < self._log.number and known != (self._log.number, self._log.mark):
            self._doubt = True  # Changes have come since the table was read.
        else:
            before = self._log.foreign
            changed = self._log.read(answer.table())
            self.foreign.note_rows("denials", self._log.foreign - before)
        return changed + self._log.lose(lost)

    async def _write(self, denial: Denial, *, anew: bool = False) -> Change:
        name, mark = name_of(denial), random_id()
        arguments = (name, value_of(denial), mark, int(anew))
        answer = _converted(await self._plane.call(DENY, self._keys, arguments), _Kept)
        return Change(answer.number, mark, _text(answer.before), name, answer.value)

    def _note(self, change: Change) -> None:
        """Have a change applied in its turn, once."""
        for one in self._log.take(change):
            self._changes.append(denial_of(one.name, one.value))
        self._came.set()

    async def save(self, denial: Denial) -> None:
        """Keep a denial, and have the other members apply it; waits a second for them at most.

        Those that do not answer are logged: they apply it when they reach the engine again.
        """
        change = await self._write(denial)
        self._note(change)
        try:
            answers = await self._control.ask_others(
                Question(_METHOD, msgspec.msgpack.encode(change))
            )
        except ReplyError:  # A token's id or a user of a megabyte: all read it in the engine.
            answers = ()
        late = [one.member for one in answers if not isinstance(one.answer, bytes)]
        if late:
            _log.warning(
                "nodes have not applied a denial yet",
                members=[one.id for one in late],
                nodes=[one.name for one in late],
            )
        # The caller applies its own denial now. What another node has made of it comes behind.
        value = self._log.value(change.name)
        if value != value_of(denial):
            self._changes.append(denial_of(change.name, value))
            self._came.set()

    async def _told(self, _asker: Member, body: bytes) -> bytes:
        """Apply another member's change, then answer."""
        try:
            change = _decode_change(body)
            denial_of(change.name, change.value)
        except UNREADABLE:
            raise BrokerError("the question cannot be read") from None
        self._note(change)
        with trio.move_on_after(_APPLIED):
            while self._changes or not self._log.has(change):
                await self._progress.wait()
            return b""
        raise BrokerError("it is not applied yet")

    async def sweep(self, now: int) -> None:
        """Forget what expired, also in the engine, by whose clock it has expired too."""
        rows = self._log.expired(now)
        for start in range(0, len(rows), _TOGETHER):
            some = rows[start : start + _TOGETHER]
            parts = [part for row in some for part in row]
            early = _converted(await self._plane.call(FORGET, self._keys[:1], parts), list[bytes])
            self._log.forget(row for row in some if row[0] not in early)


def _converted(answer: object, kind: type[T]) -> T:
    """The answer of a script.

    Raises:
        BrokerError: it is not one.
    """
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError:
        raise BrokerError("the engine: an unknown answer about denials") from None
