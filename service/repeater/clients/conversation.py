"""The contract between a transport, which reads messages, and the session that answers them."""

from __future__ import annotations

from typing import Protocol


class Conversation(Protocol):
    """Answers one client's messages. Lives inside the handler of its connection."""

    async def receive(self, message: str | bytes) -> None:
        """Carry out one whole message: text is a `str`, binary is `bytes`.

        The caller waits for the end of one call before it makes the next. A message that breaks
        the protocol disconnects the client and raises nothing. Cancelled with its connection.
        """
