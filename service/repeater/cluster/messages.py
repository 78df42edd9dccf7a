"""What members send each other by the bus: questions and answers, as arrays that only grow.

Whoever can write into the engine can write anything. What is no message is dropped.
"""

from __future__ import annotations

from typing import Final

import msgspec

from repeater.brokers.control import Member
from repeater.cluster.foreign import UNREADABLE
from repeater.workers.values import AnswerRow


class Ask(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """A question. With the same asker and number it is the same question, sent once more."""

    number: int
    asker: Member
    method: str
    body: bytes = b""


class Reply(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """What one member answers."""

    number: int
    member: str
    answer: AnswerRow


encode: Final = msgspec.msgpack.Encoder().encode

_decode: Final = msgspec.msgpack.Decoder(Ask | Reply).decode


def decoded(message: bytes) -> Ask | Reply | None:
    """The message; None if no member has sent it."""
    try:
        found: Ask | Reply = _decode(message)
    except UNREADABLE:
        return None
    return found
