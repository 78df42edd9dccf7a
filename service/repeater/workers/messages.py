"""The base of the link's messages; `up` has those of workers, `down` those of supervisors.

Each is an array with its tag first. Arrays only grow at the end, and what is added has a default,
so two releases whose `VERSION` is the same understand each other. A call with a `serial` gets one
answer with the same serial.
"""

from __future__ import annotations

from typing import Final

import msgspec

VERSION: Final = 1
"""Changes when two releases do not understand each other."""


class Message(msgspec.Struct, array_like=True, frozen=True):
    """The base of all messages."""


encode: Final = msgspec.msgpack.Encoder().encode
"""The bytes of one message, or of one row of an event, for `frames.frame`."""
