"""Channels: whether a delivery costs more when there are many channels.

* Many channels with few subscribers each: publishing is a tenth of each delivery here; a large
  fan-out hides it. Each channel gets one event, one channel after the other.
* One client on many channels: a delivery's cost does not depend on the number of channels, as long
  as the server does not search the client's subscriptions.

An event's number tells its channel, and so its subscribers and the event before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

from benchmarks.generator.load import Crowd
from benchmarks.generator.protocol import Entry
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Deliveries
from benchmarks.model import Turn
from benchmarks.peers.peer import Peer
from benchmarks.servers import started
from benchmarks.workloads.fanout import delivered
from benchmarks.workloads.workload import Plan, Workload

_CHANNELS: Final = 1_000
_EACH: Final = 10  # subscribers of each
_CLIENTS: Final = 100
_ON: Final = 100  # channels that each of them hears
_MANY_RATE: Final = 200
_ONE_RATE: Final = 100
_SECONDS: Final = 5


def many_channels(peer: Peer, plan: Plan) -> Turn:
    """One turn: 1,000 channels of 10 subscribers each, and an event to each channel."""
    channels = [f"channel{number:04}" for number in range(plan.of(_CHANNELS, 200))]
    interests = [(number,) for number in range(len(channels)) for _ in range(_EACH)]
    return _turn(peer, channels, interests, _MANY_RATE, len(channels))


def many_subscriptions(peer: Peer, plan: Plan) -> Turn:
    """One turn: 100 clients, all on the same 100 channels."""
    channels = [f"channel{number:04}" for number in range(_ON)]
    interests = [range(_ON)] * _CLIENTS
    return _turn(peer, channels, interests, _ONE_RATE, _ONE_RATE * plan.of(_SECONDS, 2))


def _turn(
    peer: Peer,
    channels: Sequence[str],
    interests: Sequence[Sequence[int]],
    rate: float,
    events: int,
) -> Turn:
    with (
        started(peer) as child,
        Crowd(child.port) as crowd,
        contextlib.ExitStack() as stack,
    ):
        crowd.open_each([peer.subscribe([channels[n] for n in one]) for one in interests])
        ways = _ways_in(stack, child.port, peer, channels)
        deliveries = Deliveries(crowd, interests)
        for publisher in {publisher.fileno(): publisher for publisher, _ in ways}.values():
            deliveries.watch(publisher)
        _publish(deliveries, ways, rate, len(channels) // 10)
        deliveries.forget()
        start = child.cpu_ns()
        _publish(deliveries, ways, rate, events)
        return delivered(deliveries, child, child.cpu_ns() - start)


def _ways_in(
    stack: contextlib.ExitStack, port: int, peer: Peer, channels: Sequence[str]
) -> list[tuple[Publisher, Entry]]:
    """Return each channel's publisher and entry; channels share a connection where they can."""
    publishers = dict[bytes, Publisher]()
    ways = list[tuple[Publisher, Entry]]()
    for channel in channels:
        entry = peer.entry([channel])
        introduction = entry.greeting.request + entry.greeting.commands
        if introduction not in publishers:
            publisher = Publisher(port, entry)
            publishers[introduction] = stack.enter_context(contextlib.closing(publisher))
        ways.append((publishers[introduction], entry))
    return ways


def _publish(
    deliveries: Deliveries, ways: Sequence[tuple[Publisher, Entry]], rate: float, events: int
) -> None:
    for number in deliveries.ticks(events, rate):
        channel = number % len(ways)
        publisher, entry = ways[channel]
        deliveries.publish(publisher, channel=channel, entry=entry)
    deliveries.finish(10)


WORKLOADS: Final = (
    Workload(
        name="channels-1000",
        title=f"{_CHANNELS:,} channels of {_EACH} subscribers",
        description=f"An event to each of {_CHANNELS:,} channels, {_MANY_RATE} a second, with "
        f"{_EACH} subscribers each; {_CHANNELS * _EACH:,} connections, each on one channel.",
        group="Channels",
        measure=many_channels,
        needs=frozenset({"channels"}),
        subscribers=_CHANNELS * _EACH,
        broad=True,
        rounds=2,
    ),
    Workload(
        name="subscriptions-100",
        title=f"{_CLIENTS} clients on {_ON} channels each",
        description=f"{_ONE_RATE * _SECONDS} events, {_ONE_RATE} a second, to {_ON} channels in "
        f"turn. Each of {_CLIENTS} clients hears all channels on one connection.",
        group="Channels",
        measure=many_subscriptions,
        needs=frozenset({"channels"}),
        subscribers=_CLIENTS,
        broad=True,
        rounds=2,
    ),
)
