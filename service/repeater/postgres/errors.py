"""What goes wrong between this process and a PostgreSQL."""

from __future__ import annotations


class LostError(Exception):
    """There is no connection, or it has ended; what was asked may have happened or not."""


class RefusedError(Exception):
    """The server refuses a statement; nothing of it happened.

    `state` is the SQLSTATE, five characters; the text is the server's first line, without values.
    """

    def __init__(self, state: str, text: str) -> None:
        super().__init__(f"{text} ({state})")
        self.state = state
