"""Reconnect storm: everybody is cut off at once, misses 20 events, and comes back at once.

Next to as many bare handshakes with a Trio server that knows no WebSocket, in alternation. Every
client proves where it was and must get what it missed, once and in order, in the reply to its
`subscribe`; events go on meanwhile, and must reach everybody once, by recovery or live. What is
received is kept, and judged when the clock has stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Final

import attrs
import msgspec

from benchmarks.figures import Figure, Plan, Target, median, percentile
from benchmarks.herd import Herd
from benchmarks.load import CENTRIFUGO_PATH, Greeting, centrifugo
from benchmarks.publishers import Rest
from benchmarks.servers import BARE_TRIO, SERVICE, Child, listen_overflows, running
from benchmarks.wire import (
    TEXT_OPCODE,
    WireError,
    event,
    event_number,
    handshake,
    split_frames,
)

_BEFORE: Final = 5  # events that everybody hears live before the cut
_MISSED: Final = 20
_DURING: Final = 5  # while the clients come back, at even parts of them
_AFTER: Final = 5
_LAST: Final = _BEFORE + _MISSED + _DURING + _AFTER - 1
_PATIENCE: Final = 30.0  # seconds for everybody to hear the last event
_BARE: Final = Greeting(handshake(CENTRIFUGO_PATH))
_ORIGIN: Final = (
    "measured on a 2-core machine: 2.0 to 2.5 x the CPU of bare Trio, of which the checked "
    "handshake is 1.25; the rest is two commands, the objects of a client and its subscription, "
    "and a reply with 20 publications. A fifth on top for what else runs there"
)


@attrs.frozen(kw_only=True)
class Storm:
    """What one round showed."""

    seconds: float
    cpu_s: float
    generator_s: float
    rss: int
    peak: int
    overflows: int
    recovered_ms: Sequence[float]
    lost: int
    doubled: int
    misplaced: int
    publish_ms: float


def reconnect_storm(plan: Plan) -> list[Figure]:
    """5,000 clients of one channel, and 5,000 spread over 100."""
    one = _compare(plan, "reconnect-storm", ["news"])
    many = _compare(plan, "reconnect-storm-100", [f"news-{number}" for number in range(100)])
    return [*one, *many]


def _compare(plan: Plan, name: str, channels: Sequence[str]) -> list[Figure]:
    count, rounds = plan.of(5_000, 1_000), plan.of(3, 1)
    bare, storms = list[tuple[float, float]](), list[Storm]()
    for _ in range(rounds):
        bare.append(_handshakes(count))
        storms.append(_storm(count, channels))
    pairs = list(zip(storms, bare, strict=True))
    ratio = median(one.seconds / seconds for one, (seconds, _) in pairs)
    cpu_ratio = median(one.cpu_s / cpu for one, (_, cpu) in pairs)
    recovered = [value for storm in storms for value in storm.recovered_ms]
    wrong = [storm.lost + storm.doubled + storm.misplaced for storm in storms]
    figure = Figure(
        name=name,
        what="seconds until everybody is back with all it missed, against bare handshakes",
        value=median(storm.seconds for storm in storms),
        unit="s",
        floor=median(seconds for seconds, _ in bare),
        ratio=ratio,
        target=Target(limit=2.0 * count / 5_000, side="at most", origin=_ORIGIN),
        alternative=Target(limit=3.0, side="at most", origin=_ORIGIN),
        detail={
            "clients": count,
            "channels": len(channels),
            "rounds": [storm.seconds for storm in storms],
            "rounds_bare_trio": [seconds for seconds, _ in bare],
            "server_cpu_s": median(storm.cpu_s for storm in storms),
            "bare_trio_cpu_s": median(cpu for _, cpu in bare),
            "cpu_ratio": cpu_ratio,
            "server_cpu_us_per_client": median(storm.cpu_s for storm in storms) / count * 1e6,
            "generator_cpu_s": median(storm.generator_s for storm in storms),
            "recovered_p50_ms": percentile(recovered, 50),
            "recovered_p99_ms": percentile(recovered, 99),
            "publish_max_ms": max(storm.publish_ms for storm in storms),
            "rss_before_mib": median(storm.rss for storm in storms) / 1_048_576,
            "rss_peak_mib": median(storm.peak for storm in storms) / 1_048_576,
            "listen_overflows": max(storm.overflows for storm in storms),
        },
    )
    faults = Figure(
        name=f"{name}-faults",
        what="events lost, doubled or out of order, over all clients and rounds",
        value=sum(wrong),
        unit="",
        target=Target(limit=0, side="at most", origin="what recovery promises"),
        detail={
            "lost": sum(storm.lost for storm in storms),
            "doubled": sum(storm.doubled for storm in storms),
            "misplaced": sum(storm.misplaced for storm in storms),
            "events_per_client": _LAST + 1 - _BEFORE,
        },
    )
    return [figure, faults]


def _handshakes(count: int) -> tuple[float, float]:
    """The floor: seconds and CPU seconds of the same return, with nobody behind the handshake."""
    with running(BARE_TRIO) as child, Herd(child.port) as herd:
        herd.come([_BARE] * count, at_once=200)
        herd.vanish()
        cpu = child.cpu_ns()
        seconds = herd.come([_BARE] * count)
        return seconds, (child.cpu_ns() - cpu) / 1e9


def _storm(count: int, channels: Sequence[str]) -> Storm:
    """One server, from its start to its end."""
    names = [channels[number % len(channels)] for number in range(count)]
    with (
        running(SERVICE) as child,
        Herd(child.port) as herd,
        contextlib.closing(Rest(child.port, *channels)) as rest,
    ):
        herd.watch(rest)
        herd.come([_greeting(name) for name in names], at_once=200)
        epochs = dict(zip(names, map(_epoch, herd.received()), strict=True))
        _publish(rest, 0, _BEFORE)
        herd.wait_for(event_mark(_BEFORE - 1), _PATIENCE)
        herd.vanish()
        _publish(rest, _BEFORE, _MISSED)
        returning = [_greeting(name, epochs[name]) for name in names]
        return _return(child, herd, rest, returning)


def _return(child: Child, herd: Herd, rest: Rest, returning: Sequence[Greeting]) -> Storm:
    """Everybody comes back, and events go on."""
    published = _BEFORE + _MISSED
    del rest.latencies_ns[:]

    def publish_on(back: int) -> None:
        """The next of the events during the storm, when its part of the clients is back."""
        nonlocal published
        number = published - _BEFORE - _MISSED
        if number < _DURING and not rest.waiting and back >= len(returning) * number / _DURING:
            rest.publish(event(published))
            published += 1

    child.reset_peak()
    rss, overflows = child.rss(), listen_overflows()
    cpu, generator = child.cpu_ns(), time.process_time()
    seconds = herd.come(returning, beside=publish_on)
    cpu, generator = child.cpu_ns() - cpu, time.process_time() - generator
    _publish(rest, published, _LAST + 1 - published)
    herd.wait_for(event_mark(_LAST), _PATIENCE)
    verdicts = [judge(received) for received in herd.received()]
    return Storm(
        seconds=seconds,
        cpu_s=cpu / 1e9,
        generator_s=generator,
        rss=rss,
        peak=child.peak_rss(),
        overflows=listen_overflows() - overflows,
        recovered_ms=herd.ready_ms,
        lost=sum(lost for lost, _, _ in verdicts),
        doubled=sum(doubled for _, doubled, _ in verdicts),
        misplaced=sum(misplaced for _, _, misplaced in verdicts),
        publish_ms=max(rest.latencies_ns) / 1e6,
    )


def _publish(rest: Rest, first: int, count: int) -> None:
    for number in range(first, first + count):
        rest.publish(event(number))
    rest.wait()


def _greeting(channel: str, epoch: str = "") -> Greeting:
    """Connect and subscribe, in one message; with an epoch, from where the cut was."""
    since = f'"recover":true,"offset":{_BEFORE},"epoch":"{epoch}",' if epoch else ""
    return centrifugo(channel, f'{since}"recoverable":true,')


def event_mark(number: int) -> bytes:
    """What only the event with this number contains."""
    return event(number).partition(b",")[0][1:]


class _Published(msgspec.Struct):
    data: msgspec.Raw
    offset: int = 0


class _Subscribed(msgspec.Struct):
    epoch: str = ""
    recovered: bool = False
    publications: list[_Published] = []


class _Pushed(msgspec.Struct):
    pub: _Published | None = None


class _Message(msgspec.Struct):
    id: int = 0
    error: msgspec.Raw | None = None
    subscribe: _Subscribed | None = None
    push: _Pushed | None = None


_decode: Final = msgspec.json.Decoder(_Message).decode


def _messages(received: bytes) -> list[_Message]:
    frames, rest = split_frames(received)
    if rest or any(opcode != TEXT_OPCODE for opcode, _ in frames):
        raise WireError(f"no whole messages: {received[-200:]!r}")
    messages = [_decode(line) for _, payload in frames for line in payload.split(b"\n")]
    if any(message.error is not None for message in messages):
        raise WireError(f"refused: {received[:200]!r}")
    return messages


def _subscribed(messages: Sequence[_Message]) -> _Subscribed:
    for message in messages:
        if message.subscribe is not None:
            return message.subscribe
    raise WireError("no reply to the subscription")


def _epoch(received: bytes) -> str:
    return _subscribed(_messages(received)).epoch


def judge(received: bytes) -> tuple[int, int, int]:
    """How many events one client lost, got twice, and got out of their place.

    Raises:
        WireError: it was not recovered, or too little of what it missed is in the reply.
    """
    messages = _messages(received)
    answer = _subscribed(messages)
    if not answer.recovered:
        raise WireError("a client was not recovered")
    live = [one.push.pub for one in messages if one.push is not None and one.push.pub is not None]
    got = [(event_number(bytes(one.data)), one.offset) for one in (*answer.publications, *live)]
    due = [(number, number + 1) for number in range(_BEFORE, _LAST + 1)]
    if len(answer.publications) < _MISSED:
        raise WireError(f"the reply has {len(answer.publications)} of {_MISSED} missed events")
    different = set(got)
    lost, doubled = len(set(due) - different), len(got) - len(different)
    misplaced = 0 if lost or doubled else sum(a != b for a, b in zip(got, due, strict=False))
    return lost, doubled, misplaced
