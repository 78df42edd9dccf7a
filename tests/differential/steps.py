"""A conversation is a list of steps; each is a dictionary that JSON can print.

* `{"open": "a", "way": "websocket", "connect": {..}}`: client a comes. `way` is the last part of
  the path; `connect` goes as a command, or as the request of a unidirectional way.
* `{"say": "a", "commands": [..]}`: client a sends these in one message. A text is a line as it is.
* `{"call": "publish", "body": {..}}`: a back end calls the server API.
* `{"http": "GET", "path": "/", "body": ""}`: a request, of whose answer the status counts.
* `{"leave": "a"}`: client a's connection is cut.
* `{"wait": 1.5}`: so many seconds pass.

In all texts `@` stands for what makes a name the conversation's own, `$client:a` and `$session:a`
for what client a was told at `connect`, `$epoch:c` for the epoch of channel c. `{"$in": 60}` is the
time in a minute, and `{"$token": {claims}, "key": "RS256"}` a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Step = dict[str, Any]


class Conversation(NamedTuple):
    """What a few clients and a back end say, one after the other."""

    name: str
    codec: str
    """`json` or `protobuf`."""
    steps: Sequence[Step]


Seen = dict[str, list[dict[str, Any]]]
"""What each client was told in one step, in its order; `api` is the answer to a call."""


class Moment(NamedTuple):
    """One step, and what it brought with each of the servers."""

    conversation: Conversation
    number: int
    theirs: Seen
    """What Centrifugo said."""
    ours: Seen
    """What Repeater said."""

    @property
    def step(self) -> Step:
        return self.conversation.steps[self.number]

    @property
    def before(self) -> Sequence[Step]:
        return self.conversation.steps[: self.number]

    @property
    def equal(self) -> bool:
        return self.theirs == self.ours
