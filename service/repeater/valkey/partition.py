"""One partition of a cluster: its commands and subscriptions, also while it moves.

Commands are carried out in the order in which they were asked. One that has to be sent again
(MOVED, ASK, TRYAGAIN) holds back all later ones of the partition, until it was answered.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

import trio

from repeater.valkey.pipe import Lost, Refused, Tell, ignore, packed
from repeater.valkey.slots import target_of
from repeater.valkey.subscriptions import Subscriptions, Taker

if TYPE_CHECKING:
    from repeater.valkey.pipe import Pipe
    from repeater.valkey.primary import Primary
    from repeater.valkey.url import Address

PAUSE: Final = 0.05
"""Seconds before a server that is moving keys is asked again."""

_AGAIN: Final = 10.0  # seconds for which a command is sent again
_ASKING: Final = packed("ASKING")


class Router(Protocol):
    """The cluster, as its partitions see it. No method waits."""

    def moved(self, partition: Partition, address: Address) -> None:
        """A server says that another one has the partition."""

    def commands_of(self, address: Address) -> Pipe | None:
        """The connection for commands to a server; None if it is not there yet."""

    def later(self, pause: float, do: Callable[[], None]) -> None:
        """Have something done in so many seconds."""


class _Question:
    """A command that waits for its answer."""

    __slots__ = ("asking", "command", "number", "tell", "until")

    def __init__(self, number: int, command: bytes, tell: Tell) -> None:
        self.number = number
        self.command = command
        self.tell = tell
        self.asking: Address | None = None  # where an ASK has pointed to
        self.until = 0.0  # when it is sent again no more; 0 if it was sent once at most

    def __lt__(self, other: _Question) -> bool:
        return self.number < other.number


class Partition:
    """Lives inside its cluster."""

    def __init__(self, number: int, tag: str, alive: bytes, router: Router) -> None:
        self.number = number
        self.tag = tag
        self.alive = alive
        """The channel whose messages show that its bus is alive."""
        self._router = router
        self.primary: Primary | None = None
        """Which has it, as far as is known."""
        self.moved_at = -1.0
        """When a server said that another one has it, in Trio's time."""
        self.is_up = False
        """Whether everything is subscribed to at its primary."""
        self.is_moving = False
        """Whether it was up, and is on its way to another primary."""
        self.subscriptions = Subscriptions("SSUBSCRIBE", "SUNSUBSCRIBE")
        self.subscriptions.takers[alive] = self._heard
        self._numbers = count()
        self._under_way = 0
        self._again = False  # whether what is under way is one question, that is sent again
        self._held: list[_Question] = []
        self._unsubscribed: list[tuple[dict[bytes, Taker], Tell]] = []

    @property
    def why(self) -> str:
        """Why it is not there; empty if it is."""
        if self.is_up or self.is_moving:
            return ""
        if self.primary is None:
            return "no server of the cluster has this partition"
        return self.primary.why or "bus: not subscribed yet"

    def ask(self, command: bytes, tell: Tell) -> None:
        """See `Servers`."""
        if why := self.why:
            raise Lost(why)
        question = _Question(next(self._numbers), command, tell)
        if self._held or self._again:
            insort(self._held, question)
        elif not self._send(question):
            self._hold(question)

    def ask_bus(self, command: bytes, tell: Tell) -> None:
        """See `Servers`."""
        if not self.is_up or self.primary is None:
            raise Lost(self.why or "the partition is moving")
        self.primary.bus.ask(command, tell)

    def subscribe(self, takers: Mapping[bytes, Taker], tell: Tell) -> None:
        """See `Servers`."""
        if why := self.why:
            raise Lost(why)
        self._subscribe(dict(takers), tell)

    def unsubscribe(self, channels: Iterable[bytes]) -> None:
        """See `Servers`."""
        gone = list(channels)
        for takers, _tell in self._unsubscribed:
            for channel in gone:
                takers.pop(channel, None)
        self.subscriptions.remove(self.primary if self.is_up else None, gone)

    def attach(self, primary: Primary | None) -> bool:
        """Take another primary; whether the bus was up at the old one, and is not any more.

        The caller has `subscribe_again` called when the new one is there.
        """
        was_up, self.is_up = self.is_up, False
        self.is_moving = (was_up or self.is_moving) and primary is not None
        self.primary = primary
        if not self.is_moving:
            self._fail(Lost(self.why))
        return was_up

    def subscribe_again(self, told: Tell) -> None:
        """Subscribe to everything, at a primary that was attached or has come back."""
        assert self.primary is not None
        self.subscriptions.add_again(self.primary.bus, told)

    def confirm(self) -> None:
        """Note that everything is subscribed to: what was held back goes on."""
        self.is_up, self.is_moving = True, False
        waiting, self._unsubscribed = self._unsubscribed, []
        for takers, tell in waiting:
            self._try_to_subscribe(takers, tell)
        self._retry()

    def lose(self) -> bool:
        """Note that the primary is not there; whether the bus was up."""
        was_up, self.is_up, self.is_moving = self.is_up, False, False
        self._fail(Lost(self.why))
        return was_up

    def target(self, answer: object) -> Address | None:
        """The server that an answer names: a MOVED or an ASK. None for all others."""
        if type(answer) is not Refused or answer.code not in ("MOVED", "ASK"):
            return None
        if self.primary is None or self.primary.address is None:
            return None
        return target_of(str(answer), self.primary.address)

    def _heard(self, _payload: bytes) -> None:
        if self.primary is not None:
            self.primary.heard()

    def _fail(self, lost: Lost) -> None:
        held, self._held = self._held, []
        waiting, self._unsubscribed = self._unsubscribed, []
        for question in held:
            question.tell(lost)
        for _takers, tell in waiting:
            tell(lost)

    def _subscribe(self, takers: dict[bytes, Taker], tell: Tell) -> None:
        primary = self.primary
        if primary is None or not self.is_up:
            self._unsubscribed.append((takers, tell))
            return

        def told(answer: object) -> None:
            target = self.target(answer)
            if target is None:
                tell(answer)
            elif self.primary is not primary:
                # It has moved since then, and may be up already: nobody would come back to this.
                self._try_to_subscribe(takers, tell)
            elif target == primary.address:
                tell(answer)  # A server that names itself: to follow it leads nowhere.
            else:
                self._unsubscribed.append((takers, tell))
                self._router.moved(self, target)

        self.subscriptions.add(primary.bus, takers, told)

    def _try_to_subscribe(self, takers: dict[bytes, Taker], tell: Tell) -> None:
        try:
            self._subscribe(takers, tell)
        except Lost as lost:
            tell(lost)

    def _send(self, question: _Question) -> bool:
        """Send a question; whether there was a server to send it to."""
        primary, asking = self.primary, question.asking
        # An ASK holds once. If that server is not there, the partition's own is asked again.
        question.asking = None
        try:
            if asking is not None:
                pipe = self._router.commands_of(asking)
                if pipe is None:
                    return False
                pipe.ask(_ASKING, ignore)
            elif primary is None or primary.why:
                return False
            else:
                pipe = primary.commands
            pipe.ask(question.command, lambda answer: self._answered(question, answer))
        except Lost:
            return False
        self._under_way += 1
        return True

    def _answered(self, question: _Question, answer: object) -> None:
        self._under_way -= 1
        self._again = False
        if type(answer) is Refused and self._is_asked_again(question, answer):
            self._hold(question)
            return
        question.tell(answer)
        if self._held and not self._under_way:
            held, self._held = self._held, []
            for one in held:
                if self._held:
                    self._held.append(one)
                elif not self._send(one):
                    self._hold(one)

    def _is_asked_again(self, question: _Question, refused: Refused) -> bool:
        """Whether the answer says that the command belongs somewhere else, or comes too early."""
        code = refused.code
        if code not in ("MOVED", "ASK", "TRYAGAIN"):
            return False
        now = trio.current_time()
        question.until = question.until or now + _AGAIN
        target = self.target(refused)
        if code == "ASK":
            question.asking = target
        elif target is not None:
            self._router.moved(self, target)
        return now < question.until

    def _hold(self, question: _Question) -> None:
        """Keep a question in its turn, and send the first one again soon.

        Of those that are held, one has a timer, or one before them is under way.
        """
        insort(self._held, question)
        # An ASK is followed at once: the server that it names has the keys.
        pause = 0.0 if question.asking is not None else PAUSE
        if not self._under_way:
            self._router.later(pause, self._retry)

    def _retry(self) -> None:
        """Send the first question of those that are held back; the others follow its answer."""
        if self._held and not self._under_way:
            first = self._held.pop(0)
            self._again = self._send(first)
            if not self._again:
                self._hold(first)
