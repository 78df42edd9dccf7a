"""What the examples of the kinds begin with."""

from __future__ import annotations

from typing import Any, Final

from tests.differential.steps import Step


def by(claims: dict[str, Any]) -> Step:
    """User 1 comes as client a, with more claims in the token."""
    token = {"$token": {"sub": "u1@", **claims}, "key": "HS256"}
    return {"open": "a", "way": "websocket", "connect": {"token": token}}


def ask(number: int, **commands: Any) -> Step:
    """Client a sends one command."""
    return {"say": "a", "commands": [{"id": number, **commands}]}


ANYBODY: Final[Step] = {"open": "a", "way": "websocket", "connect": {}}
"""Client a comes without a token."""
USER: Final[Step] = by({})
