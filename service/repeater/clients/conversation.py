"""The contract between a transport, which reads messages, and the session that answers them."""

from __future__ import annotations

from typing import Protocol


class Conversation(Protocol):
    """Answers one client's messages. Lives inside the handler of its connection."""

    async def receive(self, message: str | bytes) -> None:
        """Carry out one whole message: text is a `str`, binary is `bytes`.

        The caller waits for the end of it before it gives the next one. A broken rule
        disconnects the client and raises nothing. Cancelled with its connection.
        """
