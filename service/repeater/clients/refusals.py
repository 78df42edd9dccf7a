"""What is refused: each refusal is one line of the log, and counts by its cause.

The boundary around a command or a request calls `note` once. A line says what was asked, why it was
refused, and what to change; it holds no token, key or header. In development mode the client is
told the same (`explained`, `end`, `told`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from repeater.errors import ApplicationError, Disconnect, ReplyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from repeater.causes import Why
    from repeater.clients.client import Client
    from repeater.clients.connection_log import ConnectionLog

_REASON: Final = 120
"""Bytes of a disconnect's reason: a close frame has room for 123 (RFC 6455, section 5.5)."""


class Refusals:
    """The refusals of one node. Lives inside the node; needs no end."""

    def __init__(self, log: ConnectionLog, explaining: Callable[[], bool]) -> None:
        """Take the log, and whether clients are told why they are refused."""
        self._log = log
        self._explaining = explaining
        self.counts: Counter[str] = Counter()
        """Refusals by their cause."""

    @property
    def explaining(self) -> bool:
        """Whether clients are told why, as in development mode."""
        return self._explaining()

    def note(
        self, why: Why, what: str, client: Client | None = None, **fields: str | int | None
    ) -> None:
        """Log and count one refusal.

        Args:
            why: The reason.
            what: What was asked: `connect`, `subscribe`, `publish`...
            client: Who asked; None for a request that is not a client yet, whose `fields` say so.
            fields: What else a line should say: `code`, `channel`, `address`; empty ones are left
                out.
        """
        self.count(why)
        self._log.refused(why, what, client, fields)

    def count(self, why: Why) -> None:
        """Count a refusal whose line is in the log already, as one of several in one call."""
        self.counts[why.cause.value] += 1

    def explained(self, error: ReplyError) -> ReplyError:
        """The error to answer with: in development mode its text says why.

        The application's own errors stay as they are.
        """
        if not self.explaining or isinstance(error, ApplicationError):
            return error
        text = self.told(error.message, error.why)
        return ReplyError(error.code, text, temporary=error.temporary, why=error.why)

    def end(
        self, client: Client, disconnect: Disconnect, why: Why, what: str, channel: str = ""
    ) -> None:
        """End a client for what it asked, and note why; nothing if it has ended already."""
        if client.end is None:
            self.note(why, what, client, code=disconnect.code, channel=channel)
            client.disconnect(self._explained_end(disconnect, why))

    def _explained_end(self, disconnect: Disconnect, why: Why) -> Disconnect:
        if not self.explaining:
            return disconnect
        reason = self.told(disconnect.reason, why).encode()[:_REASON].decode(errors="ignore")
        return msgspec.structs.replace(disconnect, reason=reason)

    def told(self, text: str, why: Why) -> str:
        """The text of an answer: in development mode it goes on with the reason."""
        if not self.explaining or why.text == text:
            return text
        return f"{text}: {why}" if text else str(why)
