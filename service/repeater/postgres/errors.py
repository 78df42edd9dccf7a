"""What goes wrong between this process and a PostgreSQL."""

from __future__ import annotations

from typing import Final

NO_SCHEMA: Final = "it has no schema repeater: run `repeater postgres migrate`"
"""Why a database cannot be used whose transactions are to publish."""


class LostError(Exception):
    """There is no connection, or it has ended; what was asked may have happened or not."""


class RefusedError(Exception):
    """A statement is refused; nothing of it happened.

    `state` is the SQLSTATE, five characters. The text is the first line of the server's message. It
    may name a parameter's value; the server's details, which show rows, are not in it.
    """

    def __init__(self, state: str, text: str) -> None:
        super().__init__(f"{text} ({state})")
        self.state = state
