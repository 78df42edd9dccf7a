"""One worker, in the supervisor: its calls are carried out here on the real broker and stores.

Nothing in the reader waits. Submissions that the broker has no room for wait in a line, which the
worker's own window bounds. What must come behind them joins the line. Reads of many members or
publications are made one in each pass of the loop, so that calls of others come between them; each
belongs to a caller that waits. Every other call is carried out at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from repeater.brokers.receipts import Answer, Receipt
from repeater.errors import BrokerError, Disconnect, ReplyError, Unsubscribed
from repeater.json_text import JSONText
from repeater.publication import Announcement, Publication, StreamPosition
from repeater.workers import answers, down, up
from repeater.workers.backlog import Backlog
from repeater.workers.link import Link
from repeater.workers.members import Callers, Members
from repeater.workers.messages import Message, encode
from repeater.workers.server_control import ControlEnd
from repeater.workers.values import (
    MarkRow,
    caller_of,
    info_of,
    options_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repeater.access.grants import Denial
    from repeater.workers.shared import Shared

_CLOSED: Final = BrokerError("the server is shutting down")
_Call = up.Submit | up.Announce | up.RemoveHistory | up.KnownRows | up.ForgetRows
_Maker = Callable[[int, Any], Message]
"""Makes a message of a call's serial and its answer."""


class Attachment:
    """Made by `Exchange.attach`, which ends it."""

    def __init__(
        self, shared: Shared, stream: trio.SocketStream, given_up: Callable[[str], None]
    ) -> None:
        self._shared = shared
        self._broker = shared.broker
        self._presence = shared.presence
        self._given_up = given_up
        self._line: deque[_Call] = deque()
        self._reads: deque[tuple[int, Callable[[], Answer[Any]], _Maker]] = deque()
        self._reader = trio.lowlevel.ParkingLot()
        self._woken = trio.Event()
        self._held: dict[str, None] = {}
        self._members = Members(shared.presence, shared.broker)
        self._callers = None if shared.events is None else Callers(shared.events)
        self.control = ControlEnd(shared.control, self._send)
        self._nursery: trio.Nursery | None = None
        self.link = Link(stream, self._receive, self._beat, self._next_events)
        self.backlog = Backlog(self.link.wake, shared.sink.changed, self._overflow)
        self._handlers: dict[type[Message], Callable[[Any], None]] = {
            up.Submit: self._in_line,
            up.Announce: self._in_line,
            up.RemoveHistory: self._in_line,
            up.KnownRows: self._in_line,
            up.ForgetRows: self._in_line,
            up.Hold: self._hold,
            up.Release: self._release,
            up.ReadHistory: self._read_history,
            up.AddMember: self._add_member,
            up.RemoveMember: self._remove_member,
            up.ReadMembers: self._read_members,
            up.CountMembers: self._count_members,
            up.LoadDenials: self._load_denials,
            up.SaveDenial: self._save_denial,
            up.SweepDenials: self._sweep_denials,
            up.DenialApplied: self._denial_applied,
            up.ClientConnected: self._client_connected,
            up.ClientDisconnected: self._client_disconnected,
            up.ClientSubscribed: self._client_subscribed,
            up.ClientUnsubscribed: self._client_unsubscribed,
            up.Taken: self._taken,
            up.WorkerBeat: self._worker_beat,
            up.Mark: self._mark,
            up.Join: self.control.join,
            up.Leave: self.control.leave,
            up.Ask: self.control.ask,
            up.AskOthers: self.control.ask_others,
            up.Tell: self.control.tell,
            up.CarriedOut: self.control.carried_out,
        }

    async def run(self) -> None:
        """Serve the worker until its link ends."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._work_off)
            nursery.start_soon(self._read_on)
            nursery.start_soon(self.control.run)
            await self.link.run()
            nursery.cancel_scope.cancel("the link has ended")

    async def take_back(self) -> None:
        """Forget the worker: its presence, its clients and what it holds."""
        if self._callers is not None:
            await self._callers.take_back()
        for channel in self._held:  # The application hears of the channels behind their clients.
            self._shared.holdings.release(channel, self.backlog)
        self._held.clear()
        await self._members.take_back()

    def _send(self, message: Message) -> None:
        self.link.send(message)

    def _receive(self, body: bytes) -> None:
        handlers = self._handlers
        for message in up.read(body).messages:
            handlers[type(message)](message)

    # What must keep its order.

    def _in_line(self, call: _Call) -> None:
        if self._line or not self._carry_out(call):
            self._line.append(call)
            self._woken.set()

    def _carry_out(self, call: _Call) -> bool:
        """Carry out one call and answer it; False if there is no room for it."""
        try:
            if type(call) is up.Submit:
                self._submit(call)
            elif type(call) is up.Announce:
                self._announce(call)
            elif type(call) is up.RemoveHistory:
                self._answer(call.serial, self._broker.remove_history(call.channel), answers.done)
            elif type(call) is up.KnownRows:
                self._answer(call.serial, self._broker.known_rows(call.source), answers.rows)
            elif type(call) is up.ForgetRows:
                forgotten = self._broker.forget_rows(call.source, call.names)
                self._answer(call.serial, forgotten, answers.done)
        except trio.WouldBlock:
            return False
        except trio.ClosedResourceError:
            self._fail(call.serial, _CLOSED)
        except (BrokerError, ReplyError) as error:
            self._fail(call.serial, error)
        return True

    def _submit(self, call: up.Submit) -> None:
        info = call.info
        answer = self._broker.submit(
            Publication(
                call.channel,
                # Checked by the worker's node.
                call.data if call.binary else JSONText(call.data),
                tags=call.tags,
                info=None if info is None else info_of(info),
                delta=call.delta,
                version=call.version,
                version_epoch=call.version_epoch,
                binary=call.binary,
            ),
            options_of(call.history_size, call.history_ttl, call.history_meta_ttl),
            idempotency_key=call.idempotency_key,
            skip_history=call.skip_history,
            row=call.row,
        )
        if type(answer) is StreamPosition:
            self.link.send(down.Position(call.serial, answer.offset, answer.epoch))
        else:
            self._answer(call.serial, answer, answers.position)

    def _announce(self, call: up.Announce) -> None:
        announcement = Announcement(call.channel, info_of(call.info), call.joined)
        self._broker.announce(announcement)
        self._members.announced(announcement)
        self.link.send(down.Done(call.serial))

    async def _work_off(self) -> None:
        """Carry out what waits for room. The line's callers have deadlines, in the worker."""
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            while self._line:
                with suppress(BrokerError, trio.ClosedResourceError):  # Then the call says why.
                    await self._broker.wait_room()
                while self._line and self._carry_out(self._line[0]):
                    self._line.popleft()
                await trio.lowlevel.checkpoint()

    # Answers.

    def _answer(self, serial: int, answer: Answer[Any], message: _Maker) -> None:
        """Send an answer, now or when its receipt is settled."""
        if isinstance(answer, Receipt):
            answer.when_settled(partial(self._say, serial, message))
        else:
            self.link.send(message(serial, answer))

    def _say(self, serial: int, message: _Maker, answer: object) -> None:
        if isinstance(answer, (BrokerError, ReplyError)):
            self._fail(serial, answer)
        else:
            self.link.send(message(serial, answer))

    def _fail(self, serial: int, error: BrokerError | ReplyError) -> None:
        self.link.send(answers.error(serial, error))

    def _ask(self, serial: int, ask: Callable[[], Answer[Any]], message: _Maker) -> None:
        """Ask the engine and answer the worker."""
        try:
            self._answer(serial, ask(), message)
        except (BrokerError, ReplyError) as error:
            self._fail(serial, error)

    def _read(self, serial: int, ask: Callable[[], Answer[Any]], message: _Maker) -> None:
        self._reads.append((serial, ask, message))
        self._reader.unpark()

    async def _read_on(self) -> None:
        """Make the reads that wait, while the worker takes the answers."""
        while True:
            while not self._reads:
                await self._reader.park()
            await self.link.wait_room()
            self._ask(*self._reads.popleft())
            await trio.lowlevel.checkpoint()

    # Channels.

    def _hold(self, call: up.Hold) -> None:
        self._held[call.channel] = None
        hold = partial(self._shared.holdings.hold, call.channel, self.backlog)
        self._ask(call.serial, hold, answers.done)

    def _release(self, call: up.Release) -> None:
        self._held.pop(call.channel, None)
        self._shared.holdings.release(call.channel, self.backlog)

    def _read_history(self, call: up.ReadHistory) -> None:
        since = StreamPosition(call.since_offset, call.since_epoch)
        read = partial(
            self._broker.history,
            call.channel,
            options_of(call.history_size, call.history_ttl, call.history_meta_ttl),
            since=since if call.since_offset >= 0 else None,
            limit=call.limit,
            reverse=call.reverse,
        )
        (self._read if call.limit != 0 else self._ask)(call.serial, read, answers.page)

    # Presence.

    def _add_member(self, call: up.AddMember) -> None:
        info = info_of(call.info)
        self._members.added(call.channel, info.client)
        self._ask(call.serial, partial(self._presence.add, call.channel, info), answers.done)

    def _remove_member(self, call: up.RemoveMember) -> None:
        self._members.removed(call.channel, call.client)
        self._ask(
            call.serial, partial(self._presence.remove, call.channel, call.client), answers.done
        )

    def _read_members(self, call: up.ReadMembers) -> None:
        self._read(call.serial, partial(self._presence.members, call.channel), answers.members)

    def _count_members(self, call: up.CountMembers) -> None:
        self._ask(call.serial, partial(self._presence.count, call.channel), answers.counts)

    # Denials: a store that waits, so each call has a task.

    def _load_denials(self, call: up.LoadDenials) -> None:
        self._start(call.serial, self._shared.denials.load, answers.denials)

    def _save_denial(self, call: up.SaveDenial) -> None:
        save = partial(self._shared.denials.save, call.denial, self)
        self._start(call.serial, save, answers.done)

    def _sweep_denials(self, call: up.SweepDenials) -> None:
        self._start(call.serial, partial(self._shared.denials.sweep, call.now), answers.done)

    def _start(self, serial: int, call: Callable[[], Any], message: _Maker) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._call, serial, call, message)

    async def _call(self, serial: int, call: Callable[[], Any], message: _Maker) -> None:
        try:
            answer = await call()
        except (BrokerError, ReplyError) as error:
            self._fail(serial, error)
        else:
            self.link.send(message(serial, answer))

    def apply(self, number: int, denial: Denial) -> None:
        """Have the worker apply another worker's denial."""
        self.link.send(down.ApplyDenial(number, denial))

    def _denial_applied(self, message: up.DenialApplied) -> None:
        self._shared.denials.applied(message.number, self)

    # Events of clients.

    def _client_connected(self, event: up.ClientConnected) -> None:
        if self._callers is not None:
            self._callers.connected(caller_of(event.caller))

    def _client_disconnected(self, event: up.ClientDisconnected) -> None:
        if self._callers is not None:
            why = Disconnect(event.code, event.reason)
            self._callers.disconnected(caller_of(event.caller), why)

    def _client_subscribed(self, event: up.ClientSubscribed) -> None:
        if self._callers is not None:
            self._callers.subscribed(caller_of(event.caller), event.channel)

    def _client_unsubscribed(self, event: up.ClientUnsubscribed) -> None:
        if self._callers is not None:
            why = Unsubscribed(event.code, event.reason)
            self._callers.unsubscribed(caller_of(event.caller), event.channel, why)

    # The link itself.

    def _next_events(self, most: int) -> Sequence[bytes]:
        return self.backlog.next(most)

    def _taken(self, message: up.Taken) -> None:
        self.backlog.taken(message.weight)

    def _mark(self, call: up.Mark) -> None:
        self.backlog.put(encode(MarkRow(call.serial)), 0)

    def _worker_beat(self, _beat: up.WorkerBeat) -> None:
        """Nothing is to be done: whatever is heard counts."""

    def _beat(self) -> None:
        self.backlog.look()
        self.control.look()
        if self.link.silence >= self._shared.timeout:
            self._give_up(f"silent for {self.link.silence:.0f} s")
        self.link.send(self._shared.beat())

    def _overflow(self) -> None:
        self._give_up("8 MiB of events wait")

    def _give_up(self, reason: str) -> None:
        if not self.link.end:
            self.link.close(reason)
            self._given_up(reason)
