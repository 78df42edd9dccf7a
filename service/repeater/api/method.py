"""What a method of the API is: how its body is read, and what it does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from repeater.api.budget import Budget
    from repeater.node import Node

Call = Callable[["Node", Any, "Budget"], Awaitable[object]]
"""Carries out one call with its decoded body; returns what is encoded as its result.

Raises ReplyError, BrokerError or IntakeFullError. Checkpoints only when it waits, or when the
budget is spent: whoever calls in a loop relies on that.
"""


class Method(msgspec.Struct, frozen=True):
    """One method. `decode` raises `msgspec.DecodeError`, or `ValidationError` for wrong types."""

    body: type[msgspec.Struct]
    decode: Callable[[bytes | msgspec.Raw], Any]
    call: Call
    fields: frozenset[str]
    """The names that its body may have."""
    wrapped: bool = True
    """Whether its result stands in `result`: all do but `batch`."""
    needs: tuple[str, ...] = ()
    """The fields that must not be left out, for whoever describes it; the call checks itself."""


def method(
    body: type[msgspec.Struct], call: Call, *, wrapped: bool = True, needs: tuple[str, ...] = ()
) -> Method:
    """A method whose body is a JSON object of this shape."""
    fields = frozenset(body.__struct_encode_fields__)
    return Method(body, msgspec.json.Decoder(body).decode, call, fields, wrapped, needs)
