"""Fan-out: what one delivery costs the server, as a ratio to a bare loop of `send`.

Floor and server take turns with the same subscribers, the same frames and the same rate, because
the machine is shared: a ratio is formed within a round, and the median of the rounds counts.
Publishing by REST is part of the server's cost.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from benchmarks.figures import Figure, Plan, Target, median, percentile
from benchmarks.load import CENTRIFUGO, EVENTS, NOTICED, PLAIN, RECOVERING, Crowd, Greeting
from benchmarks.publishers import Feed, Publisher, Rest
from benchmarks.receivers import Deliveries
from benchmarks.secure import secured, tls_arguments
from benchmarks.servers import FLOOR_PYTHON, SERVICE, Child, floor_c, running

_WARM_UP: Final = 5  # events before the clock starts
_SIDE_RATE: Final = 20  # requests a second to the channel that nobody hears
_PRESENCE: Final = {"REPEATER_CHANNEL__PRESENCE": "true", "REPEATER_CHANNEL__JOIN_LEAVE": "true"}
_ORIGIN: Final = (
    "a Trio prototype that writes straight from the repeater task measured 1.15 to 1.25 x floor "
    "on a 2-core machine (8.0-8.9 us against 6.8-7.7 us)"
)


@attrs.frozen(kw_only=True)
class Load:
    """One fan-out's size."""

    name: str
    subscribers: int
    rate: float
    seconds: float
    rounds: int
    greeting: Greeting = PLAIN
    settings: Mapping[str, str] = attrs.field(factory=dict)
    secure: bool = False


@attrs.frozen(kw_only=True)
class Turn:
    """What one process did in one round."""

    cpu_us: float
    last_ms: tuple[float, ...]
    frame_bytes: int
    posts_ms: tuple[float, ...] = ()


def fanout_1000(plan: Plan) -> list[Figure]:
    """1,000 plain subscribers, 20 events a second."""
    seconds, rounds = plan.of(5, 2), plan.of(3, 1)
    load = Load(name="fanout-1000", subscribers=1_000, rate=20, seconds=seconds, rounds=rounds)
    return [_compare(load, Target(limit=1.35, side="at most", origin=_ORIGIN))[0]]


def fanout_1000_tls(plan: Plan) -> list[Figure]:
    """The same behind TLS: each event is encrypted for each subscriber. No target: it is what it
    is, beside a floor that does not encrypt."""
    load = Load(
        name="fanout-1000-tls",
        subscribers=1_000,
        rate=20,
        seconds=plan.of(5, 2),
        rounds=plan.of(3, 1),
        secure=True,
    )
    return [_compare(load, None)[0]]


def fanout_1000_centrifugo(plan: Plan) -> list[Figure]:
    """1,000 subscribers of the Centrifugo protocol, 20 events a second."""
    return _centrifugo(plan, "fanout-1000-centrifugo", CENTRIFUGO, {})


def fanout_1000_recovery(plan: Plan) -> list[Figure]:
    """The same with positions and recovery: each event is checked for a gap before it."""
    return _centrifugo(plan, "fanout-1000-recovery", RECOVERING, {})


def fanout_1000_presence(plan: Plan) -> list[Figure]:
    """The same with presence, joins and leaves on top."""
    return _centrifugo(plan, "fanout-1000-presence", NOTICED, _PRESENCE)


def _centrifugo(
    plan: Plan, name: str, greeting: Greeting, settings: Mapping[str, str]
) -> list[Figure]:
    load = Load(
        name=name,
        subscribers=1_000,
        rate=20,
        seconds=plan.of(5, 2),
        rounds=plan.of(3, 1),
        greeting=greeting,
        settings=settings,
    )
    origin = f"{_ORIGIN}; 0.1 on top for encoding the push"
    return [_compare(load, Target(limit=1.45, side="at most", origin=origin))[0]]


def fanout_1000_sse(plan: Plan) -> list[Figure]:
    """1,000 subscribers by Server-Sent Events, 20 events a second."""
    load = Load(
        name="fanout-1000-sse",
        subscribers=1_000,
        rate=20,
        seconds=plan.of(5, 2),
        rounds=plan.of(3, 1),
        greeting=EVENTS,
    )
    origin = f"{_ORIGIN}; 0.25 on top for the event's id, and for more bytes than a frame has"
    return [_compare(load, Target(limit=1.5, side="at most", origin=origin))[0]]


def fanout_9000(plan: Plan) -> list[Figure]:
    """9,000 plain subscribers, 3 events a second; and REST calls meanwhile."""
    load = Load(
        name="fanout-9000",
        subscribers=plan.of(9_000, 3_000),
        rate=3,
        seconds=plan.of(6, 3),
        rounds=plan.of(3, 1),
    )
    figure, turns = _compare(
        load, Target(limit=1.35, side="at most", origin=_ORIGIN), beside=plan.of(8, 4)
    )
    posts = [post for turn in turns for post in turn.posts_ms]
    origin = (
        "fan-out gives way every 1 ms; a call takes some ten turns of the loop, and three times "
        "that is what a user does not notice"
    )
    beside = Figure(
        name="fanout-9000-publish",
        what="p99 of POST /api/publish during the fan-out",
        value=percentile(posts, 99),
        unit="ms",
        target=Target(limit=30, side="at most", origin=origin),
        detail={"posts": len(posts), "p50_ms": percentile(posts, 50), "max_ms": max(posts)},
    )
    return [figure, beside]


def _compare(
    load: Load, target: Target | None, *, beside: int = 0
) -> tuple[Figure, Sequence[Turn]]:
    """Floor and server in alternation; `beside` seconds more with REST calls beside the events."""
    compiled = floor_c()
    floors, bare, turns = list[Turn](), list[Turn](), list[Turn]()
    for _ in range(load.rounds):
        if compiled is not None:
            floors.append(_turn(load, compiled))
        turns.append(_turn(load, SERVICE, beside=beside))
        bare.append(_turn(load, FLOOR_PYTHON))
    against_c = _ratio(turns, floors) if floors else None
    against_python = _ratio(turns, bare)
    last = [value for turn in turns for value in turn.last_ms]
    floor_last = [value for turn in floors or bare for value in turn.last_ms]
    ratio = against_python if against_c is None else against_c
    figure = Figure(
        name=load.name,
        what="CPU per delivery, as a multiple of a bare send()",
        value=ratio,
        unit="x floor",
        floor=_cpu(floors or bare),
        ratio=ratio,
        target=target,
        detail={
            "floor_is": "C" if floors else "Python",
            "cpu_us": _cpu(turns),
            "floor_c_us": _cpu(floors) if floors else "no compiler",
            "floor_python_us": _cpu(bare),
            "ratio_to_python": against_python,
            "rounds_us": [turn.cpu_us for turn in turns],
            "rounds_floor_us": [turn.cpu_us for turn in floors or bare],
            "last_p50_ms": percentile(last, 50),
            "last_p99_ms": percentile(last, 99),
            "floor_last_p50_ms": percentile(floor_last, 50),
            "floor_last_p99_ms": percentile(floor_last, 99),
            "subscribers": load.subscribers,
            "frame_bytes": turns[-1].frame_bytes,
            "floor_frame_bytes": (floors or bare)[-1].frame_bytes,
        },
    )
    return figure, turns


def _ratio(turns: Sequence[Turn], floors: Sequence[Turn]) -> float:
    return median(turn.cpu_us / floor.cpu_us for turn, floor in zip(turns, floors, strict=True))


def _cpu(turns: Sequence[Turn]) -> float:
    return median(turn.cpu_us for turn in turns)


def _turn(load: Load, command: Sequence[str], *, beside: int = 0) -> Turn:
    """One process, from its start to its end."""
    plain = command is not SERVICE
    settings = {} if plain else load.settings
    secure = load.secure and not plain
    with (
        running((*command, *tls_arguments()) if secure else command, settings) as child,
        Crowd(child.port, secured if secure else None) as crowd,
        contextlib.ExitStack() as stack,
    ):
        greeting = PLAIN if plain else load.greeting
        crowd.open(load.subscribers, greeting)
        if load.settings:
            crowd.settle()
        publisher: Publisher = (
            Feed(child.port, pushes=load.greeting not in (PLAIN, EVENTS))
            if plain
            else Rest(child.port, secured=secured if secure else None)
        )
        stack.callback(publisher.close)
        deliveries = Deliveries(crowd)
        deliveries.watch(publisher)
        deliveries.run(publisher, _WARM_UP, load.rate)
        deliveries.last_ns.clear()
        events = round(load.rate * load.seconds)
        start = child.cpu_ns()
        deliveries.run(publisher, events, load.rate)
        spent = child.cpu_ns() - start
        last_ms = tuple(value / 1e6 for value in deliveries.last_ns.values())
        posts = _posts(deliveries, publisher, child, load.rate, beside) if beside else ()
        return Turn(
            cpu_us=spent / 1e3 / (events * load.subscribers),
            last_ms=last_ms,
            frame_bytes=deliveries.frame_bytes,
            posts_ms=posts,
        )


def _posts(
    deliveries: Deliveries, publisher: Publisher, child: Child, rate: float, seconds: int
) -> tuple[float, ...]:
    """REST calls to another channel, 20 a second, while the events go on."""
    with contextlib.closing(Rest(child.port, "nobody")) as side:
        deliveries.watch(side)
        start = time.monotonic()
        events = posts = 0
        while (now := time.monotonic() - start) < seconds:
            if now >= events / rate:
                deliveries.publish(publisher)
                events += 1
            if now >= posts / _SIDE_RATE and not side.waiting:
                side.publish(b'{"beside":true}')
                posts += 1
            due = min(events / rate, posts / _SIDE_RATE)
            # With an answer outstanding, its own arrival ends the wait.
            deliveries.pump(max(0.0, due - now) if not side.waiting else 0.05)
        deliveries.finish(10)
        deliveries.unwatch(side)
        return tuple(value / 1e6 for value in side.latencies_ns)
