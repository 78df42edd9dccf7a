"""The node: the one object that web, command line, library users and tests hold.

`Node` ties broker, intake, repeater, hub and clients together and owns their tasks. It checks every
publication, from every caller. This file is longer than others because all that a node offers is
one class; the rooms below do the work.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from repeater.access.channel_rules import ChannelRules
from repeater.access.denial_store import DenialStore, MemoryDenials
from repeater.access.grants import TokenVerifier
from repeater.backend.contract import Backend, Events
from repeater.backend.options import CallbackKind
from repeater.brokers.answer_deadlines import AnswerDeadlines
from repeater.brokers.contract import Broker, PresenceStore
from repeater.brokers.control import Control, Question
from repeater.brokers.loop_control import LoopControl
from repeater.brokers.memory import MemoryBroker
from repeater.brokers.memory_presence import MemoryPresence
from repeater.clients import emulated_message, overview, user_connections
from repeater.clients.channel_operations import ChannelOperations
from repeater.clients.connection_log import ConnectionLog
from repeater.clients.counters import Counters
from repeater.clients.denials import Denials
from repeater.clients.emulation import Emulation
from repeater.clients.heartbeat import Heartbeat
from repeater.clients.limits import Places
from repeater.clients.overview import Overview
from repeater.clients.position_sets import PositionSets
from repeater.clients.presence import Attendance
from repeater.clients.questions import Questions
from repeater.clients.refusals import Refusals
from repeater.clients.registry import Registry
from repeater.clients.renewals import Renewals
from repeater.clients.shared_places import SharedPlaces, UserPlaces
from repeater.clients.statistics import NodeStatistics, OutgoingStatistics
from repeater.clients.user_connections import UserConnections
from repeater.errors import (
    SHUTDOWN,
    open_service_nursery,
)
from repeater.failures import Failures
from repeater.fanout.hub import Hub
from repeater.fanout.intake import Intake
from repeater.fanout.mailbox import Mailboxes
from repeater.fanout.outbox import BacklogRoom
from repeater.fanout.repeater import Repeater
from repeater.log import get_logger
from repeater.options import NodeOptions
from repeater.turns import Turns

_log = get_logger("node")

_BROKER_UNTIL = 0.5  # part of the shutdown timeout, so that clients still get their goodbye
_EVENTS_UNTIL = 0.95  # part of the shutdown timeout, so that the process ends within that timeout
_CLOCK_INTERVAL = 1.0  # seconds between two looks at the clock
_CLOCK_STEP = 0.5  # seconds by which expiries may be early or late after the clock was set
_SWEEPS_PER_TIMEOUT = 5  # so that a timeout ends at most a fifth of itself too late


class Node(UserConnections, ChannelOperations, Overview):
    """A running node. Made and ended by `open_node`, and never by other code."""

    def __init__(
        self,
        options: NodeOptions,
        broker: Broker,
        presence: PresenceStore,
        verifier: TokenVerifier | None,
        nursery: trio.Nursery,
        backend: Backend | None = None,
        events: Events | None = None,
        denials: DenialStore | None = None,
        now: Callable[[], float] = time.time,
        control: Control | None = None,
        user_places: UserPlaces | None = None,
        siblings: Control | None = None,
    ) -> None:
        self.control = control or LoopControl()
        """The way to the other nodes."""
        self.id = self.control.me.id
        self.options = options
        self.broker = broker
        self.presence_store = presence
        self.answer_deadlines = AnswerDeadlines()
        """Ends waits for the answers of broker and presence store."""
        self.verifier = verifier
        self.backend = backend
        self.events = events
        self.broker_errors: Counter[str] = Counter()
        """Failures of broker and presence store, by the call. The code that handles one counts."""
        self.limited: Counter[str] = Counter()
        """Refusals by the name of the limit or the denial. The code that refuses counts."""
        self.channels = ChannelRules(options)
        self.forward_headers = backend.forward_headers if backend is not None else frozenset[str]()
        """The headers of a client's HTTP request to keep (`Client.headers`)."""
        self.outgoing: Callable[[], OutgoingStatistics] | None = None
        """What is done with the publications of transactions; set by `open_outgoing`."""
        self.draining = False
        self._since = trio.current_time()
        self._now = now
        self.turns = Turns(options.fanout_budget)
        """The line in which the readers of all connections wait for their turn."""
        self.failures = Failures()
        """Errors of our own that cost one connection each."""
        self.hub = Hub(events, broker.release)
        self.backlogs = BacklogRoom(
            nursery,
            limit=options.outbox_limit,
            write_timeout=options.write_timeout,
            failures=self.failures,
        )
        self.mailboxes = Mailboxes(self.hub, self.backlogs)
        """What waits for the feeds of this process (`listen`)."""
        tick = min(1.0, options.write_timeout / _SWEEPS_PER_TIMEOUT, options.pong_timeout)
        self.heartbeat = Heartbeat(self.backlogs, tick, self.failures)
        self.attendance = Attendance(presence, broker, self.broker_errors, options.publish_timeout)
        self.renewals = Renewals(self, nursery)
        self.connection_log = ConnectionLog(options.connection_log_limit)
        self.refusals = Refusals(self.connection_log, lambda: self.options.insecure)
        self.questions: Questions = Questions(self.control, self.failures, self.broker_errors)
        """What this node carries out for others."""
        self.siblings = (
            self.questions
            if siblings is None
            else Questions(siblings, self.failures, self.broker_errors)
        )
        """What this node carries out for its supervisor: beside `questions` where nodes of other
        machines are asked by another way."""
        self.counters = Counters(self.control, self.questions)
        """Counts of an application that runs in this process, over all workers."""
        has_supervisor = self.control.me.server != self.id
        self.places = Places(
            lambda user: len(self.registry.users.get(user, ())),
            self.limited,
            SharedPlaces(self.control, self.questions) if has_supervisor else None,
            user_places,
        )
        self.registry: Registry = Registry(
            self.hub,
            self.backlogs,
            self.heartbeat,
            self.attendance,
            self.renewals,
            self.connection_log,
            self.refusals,
            events,
            options,
            self.unix_time,
            self._tell_user if has_supervisor else None,
        )
        """Every connection. It is also the `Home` of every client."""
        self.denials = Denials(
            self.registry,
            denials or MemoryDenials(),
            limit=lambda: self.options.denial_limit,
            now=self.unix_time,
            questions=self.questions,
        )
        self.emulation = Emulation()
        user_connections.register(self, self.questions)
        overview.register(self, self.questions)
        emulated_message.register(self, self.questions)
        self.position_sets = PositionSets()
        self.replays = trio.Lock()
        """One replay is encoded at a time, first come, first served. A thousand that come back at
        once would else all be late, and their bytes all wait in memory. Held without waiting for
        anything but turns."""
        self._intake = Intake(options.intake_limit, options.intake_bytes, options.batch_limit)
        self._repeater = Repeater(self.hub, self._intake, options.fanout_budget, self.failures)
        self._repeated = trio.Event()
        self._broker_scope = trio.CancelScope()
        self._broker_ended = trio.Event()
        self.refused = 0
        """Publishes told to try later: no room in time, or the node is shutting down."""

    def statistics(self) -> NodeStatistics:
        """A snapshot of all counts of this node."""
        registry = self.registry
        return NodeStatistics(
            clients=len(registry.clients),
            kinds=dict(registry.kinds),
            users=len(registry.users) - ("" in registry.users),
            channels=len(self.hub.channels),
            subscriptions=self.hub.subscriptions,
            backlogged=len(self.backlogs.backlogged),
            backlog_bytes=sum(outbox.backlog_bytes for outbox in self.backlogs.backlogged),
            draining=self.draining,
            ended=dict(registry.ends),
            limited=dict(self.limited),
            refusals=dict(self.refusals.counts),
            denials=len(self.denials),
            members=len(self.control.members()),
            refused=self.refused,
            broker_errors=dict(self.broker_errors),
            outage=self.broker.outage(),
            broker=self.broker.statistics(),
            failures=dict(self.failures.counts),
            loop_lag=self.heartbeat.lag,
            repeater=self._repeater.statistics(),
            feeds=self.mailboxes.statistics(),
            backend=self.backend.statistics() if self.backend is not None else None,
            events=self.events.statistics() if self.events is not None else None,
            outgoing=self.outgoing() if self.outgoing is not None else None,
        )

    def _tell_user(self, news: str, user: str) -> None:
        self.control.tell(Question(news, user.encode(errors="surrogatepass")))

    def reload(self, options: NodeOptions) -> None:
        """Use other options from now on, without closing a connection.

        Subscriptions keep what they were granted. Options that are built into running parts
        (intake, batches, heartbeat, timeouts of backlogs) stay as they were until a restart.
        """
        self.options = self.registry.options = options
        self.channels = ChannelRules(options)
        self.backlogs.limit = options.outbox_limit
        self.connection_log.limit = options.connection_log_limit

    def asks(self, kind: CallbackKind) -> Backend | None:
        """The back end, if it is to be asked this kind of question, else None."""
        if self.backend is None or kind not in self.backend.kinds:
            return None
        return self.backend

    def unix_time(self) -> float:
        """Unix seconds, asked of the clock each time: the clock may be set while the node runs."""
        return self._now()

    def uptime(self) -> float:
        """Seconds since the node was made."""
        return trio.current_time() - self._since

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the node's own tasks until `shut_down` has let fan-out finish."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.heartbeat.run)
            nursery.start_soon(self._run_broker)
            nursery.start_soon(self.attendance.run)
            nursery.start_soon(self.answer_deadlines.run)
            nursery.start_soon(self.denials.run)
            nursery.start_soon(self._follow_clock)
            task_status.started()
            try:
                await self._repeater.run()
            finally:
                self._repeated.set()  # after a crash too, so that `shut_down` does not hang
            nursery.cancel_scope.cancel()

    async def _run_broker(self) -> None:
        try:
            with self._broker_scope:
                await self.broker.run(self._intake)
        finally:
            self._broker_ended.set()

    async def _follow_clock(self) -> None:
        """Schedule expiries anew whenever the clock was set, until cancelled.

        Expiries are Unix times, but the heartbeat that ends what expired runs on Trio's clock,
        which nobody sets and which stands still while the machine sleeps.
        """
        ahead = self.unix_time() - trio.current_time()
        while True:
            await trio.sleep(_CLOCK_INTERVAL)
            step = self.unix_time() - trio.current_time() - ahead
            if abs(step) < _CLOCK_STEP:
                continue
            ahead += step
            _log.info("the clock was set", seconds=round(step, 1))
            for client in tuple(self.registry.clients):
                client.expiry_changed()
                await self.turns.give_way()

    async def shut_down(self) -> None:
        """Finish what was accepted, then disconnect clients in paced groups (3001).

        The broker answers and hands on what it has taken, and takes nothing more; a broker that
        does not answer is waited for as long as a publisher waits. Then it ends, and fan-out ends
        with its last event. The caller sets the deadline. The clients' handlers say goodbye
        meanwhile. Idempotent.
        """
        if self.events is not None and not self.draining:
            seconds = self.options.shutdown_timeout * _EVENTS_UNTIL
            self.events.shut_down_by(trio.current_time() + seconds)
        self.draining = True
        if not self._broker_ended.is_set():
            options = self.options
            with trio.move_on_after(
                min(options.publish_timeout, options.shutdown_timeout * _BROKER_UNTIL)
            ):
                if any(one.server != self.control.me.server for one in self.control.members()):
                    # Other servers' clients hear it now, or never: the broker ends first.
                    await self.attendance.announce_leaves(tuple(self.registry.clients))
                await self.broker.finish()
            self._broker_scope.cancel("the node is shutting down")
            await self._broker_ended.wait()
        self._intake.close()
        await self._repeated.wait()
        self.mailboxes.end()
        clients = tuple(self.registry.clients)
        size = self.options.shutdown_group
        groups = [clients[start : start + size] for start in range(0, len(clients), size)]
        if not groups:
            return
        _log.info("asking clients to leave", clients=len(clients))
        pause = min(self.options.shutdown_pause, self.options.shutdown_timeout / 4 / len(groups))
        for group in groups:
            for client in group:
                client.disconnect(SHUTDOWN)
            await trio.sleep(pause)


def memory_broker(options: NodeOptions) -> MemoryBroker:
    """The broker that a node has by default."""
    return MemoryBroker(
        idempotency_ttl=options.idempotency_ttl,
        idempotency_bytes=options.idempotency_bytes,
        history_bytes=options.history_bytes,
        history_channels=options.history_channels,
    )


@asynccontextmanager
async def open_node(
    options: NodeOptions | None = None,
    *,
    broker: Broker | None = None,
    presence: PresenceStore | None = None,
    verifier: TokenVerifier | None = None,
    backend: Backend | None = None,
    events: Events | None = None,
    denials: DenialStore | None = None,
    now: Callable[[], float] = time.time,
    control: Control | None = None,
    user_places: UserPlaces | None = None,
    siblings: Control | None = None,
) -> AsyncIterator[Node]:
    """Run a node inside any Trio program, for as long as the block lasts.

    At the end, also of a cancelled block, it finishes the fan-out of what it accepted and asks
    the clients to leave, within the shutdown timeout; then its tasks are cancelled. An error of
    the block comes out as it is (see `open_service_nursery`).

    Args:
        options: Defaults to `NodeOptions()`, in which anonymous clients may not subscribe.
        broker: Defaults to a `MemoryBroker`. Its `run` is called and ended by the node.
        presence: Defaults to a `MemoryPresence`.
        verifier: Proves tokens; without one no token is accepted. Its owner outlives the node.
        backend: Answers the questions that the options leave to it. Its owner outlives the node.
        events: Is told of connections and channels. Its owner outlives the node.
        denials: Stores blocked users and revoked tokens. By default they are kept in memory, and
            forgotten with the node. Its owner outlives the node.
        now: Gives Unix seconds. Expiries follow this clock when it is set, forwards or backwards.
        control: The way to other nodes, which this node asks and answers. By default it is the
            only one.
        user_places: Counts the connections of users over all nodes, where `limits.scope` says so.
            Its owner outlives the node.
        siblings: The way to the supervisor of this worker, where `control` is another one: by this
            way its metrics are those of all workers. By default it is `control`.

    Raises:
        BrokerError: blocked users and revoked tokens cannot be read.
    """
    options = options or NodeOptions()
    denials = denials or MemoryDenials()
    kept = await denials.load()
    async with open_service_nursery() as nursery:
        node = Node(
            options,
            broker or memory_broker(options),
            presence or MemoryPresence(),
            verifier,
            nursery,
            backend,
            events,
            denials,
            now,
            control,
            user_places,
            siblings,
        )
        node.denials.restore(kept)
        nursery.start_soon(node.connection_log.run)
        trio.lowlevel.add_instrument(node.turns)
        try:
            await nursery.start(node.run)
            await nursery.start(node.questions.run)  # until the last client has left
            if node.siblings is not node.questions:
                await nursery.start(node.siblings.run)
            try:
                yield node
            finally:
                deadline = trio.current_time() + node.options.shutdown_timeout
                with trio.CancelScope(shield=True, deadline=deadline):
                    await node.shut_down()
                node.mailboxes.end()  # also of a shutdown whose time was over
                node.questions.say_goodbye()
                node.siblings.say_goodbye()
        finally:
            trio.lowlevel.remove_instrument(node.turns)
