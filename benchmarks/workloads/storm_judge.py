"""The reconnect storm's judge: compares what each client received with what it must receive.

Pure functions of a connection's bytes, which run when the clock has stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from benchmarks.generator.wire import TEXT_OPCODE, WireError, event_number, split_frames

BEFORE: Final = 5  # events that all clients hear live before the cut
MISSED: Final = 20
DURING: Final = 5  # events while the clients come back, one after each part of them
AFTER: Final = 5
LAST: Final = BEFORE + MISSED + DURING + AFTER - 1
"""The number of the last event."""


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


def epoch_of(received: bytes) -> str:
    """The epoch that the reply to a client's subscription names."""
    return _subscribed(_messages(received)).epoch


def judge(received: bytes) -> tuple[int, int, int]:
    """Return how many events one client lost, got twice, and got out of order.

    Raises:
        WireError: the client was not recovered, or the reply lacks missed events.
    """
    messages = _messages(received)
    answer = _subscribed(messages)
    if not answer.recovered:
        raise WireError("a client was not recovered")
    live = [one.push.pub for one in messages if one.push is not None and one.push.pub is not None]
    got = [(event_number(bytes(one.data)), one.offset) for one in (*answer.publications, *live)]
    due = [(number, number + 1) for number in range(BEFORE, LAST + 1)]
    if len(answer.publications) < MISSED:
        raise WireError(f"the reply has {len(answer.publications)} of {MISSED} missed events")
    different = set(got)
    lost, doubled = len(set(due) - different), len(got) - len(different)
    misplaced = 0 if lost or doubled else sum(a != b for a, b in zip(got, due, strict=False))
    return lost, doubled, misplaced
