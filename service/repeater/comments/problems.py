"""The problems that a request can have, in the words that its sender reads. Values only."""

from __future__ import annotations

from typing import Final

import msgspec


class Problem(msgspec.Struct, frozen=True):
    """An HTTP status, the name of the message in the form's page, and the message."""

    status: int
    name: str
    text: str


BAD_ADDRESS: Final = Problem(400, "bad-address", "That is not an e-mail address.")
WEAK_PASSWORD: Final = Problem(
    400, "weak-password", "Choose a password of 8 characters or more that is not easily guessed."
)
BAD_NAME: Final = Problem(400, "bad-name", "A name has up to 40 characters, and no @.")
TAKEN: Final = Problem(409, "taken", "This address has an account already.")
WRONG: Final = Problem(401, "wrong", "Address or password is wrong.")
SIGN_IN: Final = Problem(401, "sign-in", "Sign in to comment.")
EMPTY: Final = Problem(400, "empty", "Write something first.")
TOO_LONG: Final = Problem(400, "too-long", "That is too long for one comment.")
BAD_QUERY: Final = Problem(400, "bad-query", "limit and before are positive integers.")
FOREIGN: Final = Problem(403, "foreign", "This form was sent by another site's page.")
TOO_LARGE: Final = Problem(413, "too-large", "That is too much for one form.")
TOO_MANY: Final = Problem(429, "too-many", "Too many attempts. Wait a little and try again.")
BUSY: Final = Problem(503, "busy", "The server is busy. Try again in a moment.")


class ProblemError(Exception):
    """The request is not carried out: it is wrong, or the server is too busy."""

    def __init__(self, problem: Problem, retry_after: float = 0.0) -> None:
        super().__init__(problem.text)
        self.problem = problem
        self.retry_after = retry_after
