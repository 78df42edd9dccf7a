"""The formats: what Protobuf clients cost, beside the JSON clients of the same rounds.

Deliveries, idle memory and whole commands. A command is measured as a client sends it, one in a
message after the answer to the last, and with many in a message, where decoding and answering are
nearly all.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from benchmarks.generator import protobuf
from benchmarks.generator.protocol import Greeting
from benchmarks.generator.wire import (
    BINARY_OPCODE,
    TEXT_OPCODE,
    WireError,
    client_frame,
    event,
    split_frames,
)
from benchmarks.model import Metric, Turn
from benchmarks.peers.peer import Peer
from benchmarks.peers.protobuf import FORMATS, PROTOBUF, connecting
from benchmarks.peers.repeater import commands as json_commands
from benchmarks.servers import Child, started
from benchmarks.workloads.fanout import fan_out
from benchmarks.workloads.memory import idle_memory
from benchmarks.workloads.workload import Plan, Workload

_SUBSCRIBERS: Final = 1_000
_RATE: Final = 20  # events a second
_CONNECTIONS: Final = 5_000
_CHANNELS: Final = 100  # below the limit of a connection
_MANY: Final = 20  # commands in one message
_CYCLES: Final = 40  # of subscribing to all channels, leaving them, and as many publishes
_WARM_CYCLES: Final = 5
_ANSWER_SECONDS: Final = 10.0


class _Format(msgspec.Struct, frozen=True):
    """How a client says a command in this format, and how the answer to it ends."""

    greeting: Greeting
    opcode: int
    between: bytes
    subscribe: Callable[[int, str], bytes]
    unsubscribe: Callable[[int, str], bytes]
    publish: Callable[[int, str], bytes]
    answers: Callable[[int, str], bytes]
    """Bytes that the answer to a command has, by its id and method."""


def _json(method: str, more: bytes = b"") -> Callable[[int, str], bytes]:
    def command(number: int, channel: str) -> bytes:
        request = b'{"channel":"%s"%s}' % (channel.encode(), more)
        return b'{"%s":%s,"id":%d}' % (method.encode(), request, number)

    return command


_DATA: Final = event(0)
_PROTOBUF_ANSWERS: Final = {
    "subscribe": protobuf.subscribed,
    "unsubscribe": protobuf.unsubscribed,
    "publish": protobuf.published,
}
COMMAND_FORMATS: Final = {
    "repeater-centrifugo": _Format(
        greeting=json_commands(["news"]).greeting,
        opcode=TEXT_OPCODE,
        between=b"\n",
        subscribe=_json("subscribe"),
        unsubscribe=_json("unsubscribe"),
        publish=_json("publish", b',"data":%s' % _DATA),
        answers=lambda number, method: b'{"id":%d,"%s":{' % (number, method.encode()),
    ),
    PROTOBUF.name: _Format(
        greeting=connecting(ready=b"\x08\x01"),
        opcode=BINARY_OPCODE,
        between=b"",
        subscribe=protobuf.subscribe,
        unsubscribe=protobuf.unsubscribe,
        publish=lambda number, channel: protobuf.publish(number, channel, _DATA),
        answers=lambda number, method: _PROTOBUF_ANSWERS[method](number),
    ),
}
"""By the name of the peer whose clients speak it."""


class _Client:
    """One connection that sends commands, and waits for the answers. Owned by a turn."""

    def __init__(self, child: Child, form: _Format) -> None:
        self._child = child
        self._format = form
        self._socket = socket.create_connection(("127.0.0.1", child.port), _ANSWER_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._number = 1
        self._received = b""
        self._socket.sendall(form.greeting.request)
        self._until(b"\r\n\r\n")
        self._received = self._received.partition(b"\r\n\r\n")[2]
        self._socket.sendall(form.greeting.commands)
        self._until(form.greeting.ready)
        self._received = b""

    def close(self) -> None:
        self._socket.close()

    def _until(self, mark: bytes) -> None:
        while mark not in self._received:
            data = self._socket.recv(65_536)
            if not data:
                raise WireError(f"the server hung up after {self._received[-200:]!r}")
            self._received += data

    def spent(self, method: str, channels: Sequence[str], at_once: int) -> int:
        """Nanoseconds of the server for one command of this method on each channel.

        `at_once` commands are in a message; the next message follows the last answer.

        Raises:
            WireError: a command was refused, or not answered in time.
        """
        messages = list(self._messages(method, channels, at_once))
        start = self._child.cpu_ns()
        for message, last in messages:
            self._socket.sendall(message)
            self._until(last)
            frames, self._received = split_frames(self._received)
            if not frames:
                raise WireError("an answer without a frame")
        return self._child.cpu_ns() - start

    def _messages(
        self, method: str, channels: Sequence[str], at_once: int
    ) -> Iterator[tuple[bytes, bytes]]:
        command = getattr(self._format, method)
        for first in range(0, len(channels), at_once):
            said = []
            for channel in channels[first : first + at_once]:
                self._number += 1
                said.append(command(self._number, channel))
            message = client_frame(self._format.between.join(said), self._format.opcode)
            yield message, self._format.answers(self._number, method)


def commands(peer: Peer, plan: Plan) -> Turn:
    """One turn: each kind of command, alone in its message and with others."""
    channels = [f"c{number}" for number in range(_CHANNELS)]
    cycles = plan.of(_CYCLES, 5)
    spent = dict.fromkeys(_COMMANDS, 0)
    with started(peer) as child:
        client = _Client(child, COMMAND_FORMATS[peer.name])
        try:
            for cycle in range(-_WARM_CYCLES, cycles):
                for at_once, suffix in ((1, ""), (_MANY, "_many")):
                    subscribed = client.spent("subscribe", channels, at_once)
                    client.spent("unsubscribe", channels, at_once)
                    published = client.spent("publish", channels, at_once)
                    if cycle >= 0:
                        spent[f"subscribe{suffix}_us"] += subscribed
                        spent[f"publish{suffix}_us"] += published
        finally:
            client.close()
    return Turn(values={name: ns / 1e3 / (cycles * _CHANNELS) for name, ns in spent.items()})


_COMMANDS: Final = {
    "subscribe_us": Metric("server CPU per subscribe", "us", short="subscribe us"),
    "publish_us": Metric("server CPU per publish", "us", short="publish us"),
    "subscribe_many_us": Metric(
        f"server CPU per subscribe, {_MANY} in a message", "us", short=f"of {_MANY} subscribes us"
    ),
    "publish_many_us": Metric(
        f"server CPU per publish, {_MANY} in a message", "us", short=f"of {_MANY} publishes us"
    ),
}

WORKLOADS: Final = (
    Workload(
        name="protobuf-fanout",
        title=f"Fan-out to {_SUBSCRIBERS:,}",
        description=f"Events of 136 bytes, {_RATE} a second, to {_SUBSCRIBERS:,} subscribers of "
        "one channel. The floors send the same frames as the server.",
        group="Deliveries",
        measure=lambda peer, plan: fan_out(
            peer, subscribers=_SUBSCRIBERS, rate=_RATE, seconds=plan.of(4, 2)
        ),
        only=[peer.name for peer in FORMATS],
        subscribers=_SUBSCRIBERS,
        apart=True,
    ),
    Workload(
        name="protobuf-memory",
        title="Idle memory",
        description=f"What {_CONNECTIONS:,} idle subscribers of one channel add to the server's "
        "resident memory, divided by their number.",
        group="Memory",
        measure=lambda peer, plan: idle_memory(peer, connections=plan.of(_CONNECTIONS, 1_000)),
        metrics={
            "empty_mib": Metric("resident memory without connections", "MiB", short="empty MiB")
        },
        only=list(COMMAND_FORMATS),
        rounds=2,
        apart=True,
    ),
    Workload(
        name="protobuf-commands",
        title="Whole commands",
        description="One connection sends commands: each alone in a message, after the answer to "
        f"the last; then {_MANY} in a message, after the answers to the last. The server's whole "
        "CPU is counted, from the read of the socket to the write of the answer.",
        group="Commands",
        measure=commands,
        metrics=_COMMANDS,
        only=list(COMMAND_FORMATS),
        apart=True,
    ),
)
