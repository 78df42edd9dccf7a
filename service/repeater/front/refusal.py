"""A refused request for a subscription: its answer, and its line in the log.

Who asks the questions (`admit`, `plain_questions`) raises; who sends the answer notes the refusal,
because a request may be handed over before it is answered, and is then asked once more.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from repeater.front.reasons import explained
from repeater.front.responses import answer_refusal
from repeater.front.routes import ROUTES, Route
from repeater.protocol.http.answer import Answer, Headers

if TYPE_CHECKING:
    from repeater.causes import Why
    from repeater.config import Settings
    from repeater.front.request import Request
    from repeater.node import Node


class Refusal(msgspec.Struct, frozen=True):
    """The answer to a request that is not opened: a refusal, or the answer to a preflight."""

    answer: Answer
    counted: bool = False
    """Whether a limit or a denial has counted the request, which must not be counted twice."""
    why: Why | None = None
    """The reason, for `note_refusal`; None where nothing was refused."""
    user: str = ""
    channel: str = ""


class RefusedError(Exception):
    """A question refuses the request; `admit` takes it and returns the refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.answer.status)
        self.refusal = refusal


class Questions(msgspec.Struct, eq=False, kw_only=True):
    """A request while it is decided on. Lives inside `Admission.decide`."""

    _node: Node
    _settings: Settings
    _request: Request
    _route: Route
    _cors: Headers = ()
    _user: str = ""
    """The user of a token that is proven."""

    def _refused(
        self,
        status: HTTPStatus,
        why: Why,
        *,
        counted: bool = False,
        text: str = "",
        channel: str = "",
    ) -> RefusedError:
        refusals = self._node.refusals
        text = refusals.told(text, why)
        answer = answer_refusal(self._request, self._route, status, self._cors, text)
        answer = explained(refusals, answer, why)
        return RefusedError(Refusal(answer, counted, why, self._user, channel))


def note_refusal(node: Node, request: Request, refusal: Refusal) -> None:
    """Log and count a refusal; called by who sends its answer."""
    if refusal.why is not None:
        node.refusals.note(
            refusal.why,
            ROUTES[request.path].name,
            status=refusal.answer.status,
            channel=refusal.channel,
            user=refusal.user,
            address=request.address,
        )
