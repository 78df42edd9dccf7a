"""Why something was refused: one of few causes, the reason in words, and what to change.

Who refuses knows the reason and attaches it to the error; the boundary around the command or the
request logs it, counts it, and in development mode tells the client (`clients/refusals.py`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class Cause(StrEnum):
    """The kinds of refusals, as in the metric `repeater_refusals_total` and in the log."""

    ORIGIN = "origin"
    """A page of another origin."""
    HOST = "host"
    """A request for another host."""
    API_KEY = "api_key"
    """A call of the server API without the key."""
    TOKEN = "token"
    """A token that proves nothing."""
    TOKEN_EXPIRED = "token_expired"
    """A token that was good once, or is not good yet; or another permission that has ended."""
    CREDENTIALS = "credentials"
    """No token and no user, where one is needed."""
    NAMESPACE = "namespace"
    """A channel of a namespace that does not exist."""
    CHANNEL = "channel"
    """A name that no channel can have."""
    PERMISSION = "permission"
    """The rules of the channel do not allow it to this user."""
    NOT_OFFERED = "not_offered"
    """The server, or this channel, does not have it."""
    LIMIT = "limit"
    """A limit is reached."""
    DENIAL = "denial"
    """The user is blocked, or the token is revoked."""
    CALLBACK = "callback"
    """The application's back end, or the issuer of its tokens, was asked: no answer came, or one
    that cannot be used."""
    APPLICATION = "application"
    """The application's back end refused."""
    ENGINE = "engine"
    """The engine, or another process of ours, does not answer."""
    RECOVERY = "recovery"
    """Missed publications cannot be given."""
    REQUEST = "request"
    """The request has another shape than the protocol wants."""
    METHOD = "method"
    """There is no such method."""
    SHUTDOWN = "shutdown"
    """The server shuts down."""


class Why(msgspec.Struct, frozen=True):
    """Why something was refused. Holds no secret: it goes to the log."""

    cause: Cause
    text: str
    """The cause in words."""
    mend: str = ""
    """What to change, and where; empty where nothing has to be changed."""

    def __str__(self) -> str:
        return f"{self.text}: {self.mend}" if self.mend else self.text


SHUTTING_DOWN: Final = Why(Cause.SHUTDOWN, "the server shuts down")
"""For clients and their streams, which come back by themselves."""
