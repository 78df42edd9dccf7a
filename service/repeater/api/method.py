"""A method of the API: how its body is decoded, and the function that carries out a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from repeater.protocol.json_reader import reader

if TYPE_CHECKING:
    from repeater.api.budget import Budget
    from repeater.node import Node

Call = Callable[["Node", Any, "Budget"], Awaitable[object]]
"""Carries out one call with its decoded body, and returns the result to encode.

Raises ReplyError, BrokerError or IntakeFullError. Checkpoints only when it waits, or when the
budget is spent. Code that makes calls in a loop, such as `batch`, relies on that.
"""


class Method(msgspec.Struct, frozen=True):
    """One method. `decode` raises `msgspec.DecodeError`, or `ValidationError` for wrong types."""

    body: type[msgspec.Struct]
    decode: Callable[[bytes], Any]
    call: Call
    fields: frozenset[str]
    """The names of the fields that the body may have."""
    wrapped: bool = True
    """Whether the answer has the result inside `result`: true for all methods but `batch`."""
    needs: tuple[str, ...] = ()
    """The required fields, for descriptions of the method only. The call checks them itself."""


def method(
    body: type[msgspec.Struct],
    call: Call,
    *,
    wrapped: bool = True,
    needs: tuple[str, ...] = (),
    around: int = 1,
) -> Method:
    """A method whose body is a JSON object of this shape; for `around` see `reader`."""
    fields = frozenset(body.__struct_encode_fields__)
    return Method(body, reader(body, around=around), call, fields, wrapped, needs)
