"""Client-to-server messages of clients whose connection goes one way only (protocol, section 14).

Each message comes in its own HTTP request, which names a session by the id from the connect reply.
Rule: a session's messages are carried out one after the other, in order of arrival, even when their
requests overlap. They run only inside the stream's own nursery, so that they end with the stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from repeater.errors import TOO_MANY_REQUESTS
from repeater.random_id import random_id

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.conversation import Conversation

# Most messages that wait in one session: an SDK may send all its subscriptions one by one.
_MESSAGES: Final = 128
_BYTES: Final = 262_144  # most bytes in these messages: four messages of the largest size


class UnknownSessionError(Exception):
    """The session does not exist, or belongs to another client than the one that asks."""


class OverflowedError(Exception):
    """A session's queue is full, and its client was disconnected to come back (3013)."""


class Emulation:
    """The sessions of one node, by their ids. Lives inside the node."""

    def __init__(self) -> None:
        self._sessions: dict[str, EmulatedSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    @contextmanager
    def open(
        self,
        client: Client,
        conversation: Conversation,
        nursery: trio.Nursery,
        credentials: str = "",
    ) -> Iterator[EmulatedSession]:
        """Give a client its session, for as long as the block lasts, and yield the session.

        Args:
            client: Its `session` becomes the new id, which cannot be guessed.
            conversation: Carries out the messages.
            nursery: The stream's own, in which the messages are carried out.
            credentials: The credentials of the stream's request, or empty. A later request must
                have the same ones, so a leaked session id alone is not enough to send messages.
        """
        client.session = random_id()
        session = EmulatedSession(client, conversation, nursery, credentials)
        self._sessions[client.session] = session
        try:
            yield session
        finally:
            del self._sessions[client.session]

    def take(self, session_id: str, message: str | bytes, credentials: str = "") -> None:
        """Queue a message behind the session's earlier ones. Returns at once.

        Raises:
            UnknownSessionError: the session does not exist, its client is ending, or the stream
                was opened with other credentials.
            OverflowedError: the session's queue is full; the client is disconnected, because no
                later message may be carried out after one that was left out.
        """
        session = self._sessions.get(session_id)
        if session is None or not session.belongs_to(credentials):
            raise UnknownSessionError
        session.take(message)


class EmulatedSession:
    """The queue of one session, with a task only while messages wait.

    Lives inside `Emulation.open`.
    """

    def __init__(
        self, client: Client, conversation: Conversation, nursery: trio.Nursery, credentials: str
    ) -> None:
        self._client = client
        self._conversation = conversation
        self._nursery = nursery
        self._credentials = credentials
        self._waiting: deque[tuple[str | bytes, int]] = deque()
        self._bytes = 0
        self._working = False

    def belongs_to(self, credentials: str) -> bool:
        """Whether the client is still open, and a request with these credentials may use it."""
        return self._client.end is None and self._credentials in ("", credentials)

    def take(self, message: str | bytes) -> None:
        """Put a message behind the others, and start the task that carries them out."""
        self._client.heard()
        size = len(message if isinstance(message, bytes) else message.encode())
        self._bytes += size
        if len(self._waiting) >= _MESSAGES or self._bytes > _BYTES:
            self._client.disconnect(TOO_MANY_REQUESTS)
            raise OverflowedError
        self._waiting.append((message, size))
        if not self._working:
            self._working = True
            self._nursery.start_soon(self._work)

    async def _work(self) -> None:
        """Carry out the waiting messages, then end. Each command has deadlines of its own."""
        while self._waiting:
            message, size = self._waiting.popleft()
            self._bytes -= size
            await self._conversation.receive(message)
        self._working = False
